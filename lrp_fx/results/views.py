"""Results in a terminal and as static HTML: both show the same parts of every sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrp_fx.errors import LatentError
from lrp_fx.results import tables
from lrp_fx.results.batch import Batch
from lrp_fx.results.pictures import draw, heading_of, words_of
from lrp_fx.viz import Panel, Text, Word, visible
from lrp_fx.viz.terminal import ledger_table, render_sample, top_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType


@dataclass(frozen=True)
class Sample:
    """The parts of one explained sample to show.

    Attributes:
        texts: words of each input of tokens, and of each target if there are several.
        shares: lists all shares, for the table of the largest.
        pictures: (caption, function that draws it), for a page.
        ledger: amounts by category; empty without a ledger.
        notes: notes, and the reason of a missing ledger.
        heading: the explained value.
        facts: further names and values.
        ranked: what a page ranks by relevance; None for the words of the texts.
    """

    texts: Sequence[Text]
    shares: Callable[[], list[Word]]
    pictures: Sequence[tuple[str, Callable[[], Figure]]]
    ledger: Mapping[str, float]
    notes: Sequence[str]
    heading: str
    facts: Mapping[str, str] = field(default_factory=dict)
    ranked: Sequence[Word] | None = None


def sample_of(one: Batch, ledger: bool | None) -> Sample:
    """The parts of a result of one sample: its words, pictures of its other inputs, its ledger.

    Args:
        one: the result, with tokens merged or not.
        ledger: whether to show (and compute) the ledger; None: only if it was computed.
    """
    names = one.token_inputs
    texts = [text for name in names for text in _texts(one, name, name if len(names) > 1 else "")]
    notes, amounts = [], {}
    if one.target_names is None and (ledger or (ledger is None and "ledger" in vars(one))):
        try:
            amounts = one.ledger.by("category")  # type: ignore[attr-defined]
        except LatentError as reason:
            notes.append(f"no ledger: {reason}")
    others = [name for name in one.relevance if name not in names]
    drawn = others if one.target_names is None else []
    return Sample(
        texts,
        lambda: _shares(one, texts, others),
        [(name, lambda name=name: draw(one, "auto", name)) for name in drawn],  # type: ignore[misc]
        amounts,
        [*map(str, one.notes), *notes],
        heading_of(one),
        {"rules": one.ruleset},
    )


def _texts(one: Batch, name: str, heading: str) -> list[Text]:
    tokens, relevance = one.tokens(name)[0], one.relevance[name].select(one.SAMPLES, 0)
    if one.target_names is None:
        return [Text(words_of(tokens, relevance), heading)]
    whole = Text(words_of(tokens, relevance.sum(0)), f"{heading} all together".strip())
    values = one.target.select(one.SAMPLES, 0).tolist()
    rows = zip(one.target_names, values, relevance, strict=True)
    each = [
        Text(words_of(tokens, r), f"{heading} {visible(target)} ({value:.4g})".strip(), True)
        for target, value, r in rows
    ]
    return [whole, *each]


def _shares(one: Batch, texts: Sequence[Text], others: Sequence[str]) -> list[Word]:
    words = [word for text in texts if not text.folded for word in text.words]
    return words + [Word(share.text, share.relevance) for share in tables.shares(one) if share.input in others]


def panel(sample: Sample, facts: Mapping[str, str]) -> Panel:
    """A sample on a page, with further ``facts``."""
    pictures = [(caption, draw_it()) for caption, draw_it in sample.pictures]
    facts = {**sample.facts, **facts}
    return Panel(sample.heading, facts, sample.texts, pictures, sample.ledger, sample.notes, sample.ranked)


def rendered(sample: Sample) -> RenderableType:
    """A sample in a terminal; images and sounds by their largest shares."""
    texts = [(text.heading, text.words) for text in sample.texts]
    shown = [top_table(sample.shares()), *([ledger_table(sample.ledger)] if sample.ledger else [])]
    return render_sample(sample.heading, texts, shown, sample.notes)
