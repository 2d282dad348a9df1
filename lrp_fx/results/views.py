"""Results in a terminal and as static HTML: both show the same parts of every sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrp_fx.errors import LatentError
from lrp_fx.results import tables
from lrp_fx.results.batch import Batch
from lrp_fx.results.pictures import draw, heading_of, words_of
from lrp_fx.viz import Panel, Text, Word
from lrp_fx.viz.terminal import ledger_table, render_sample, top_table

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST = 12  #: number of shares of other inputs than text in a terminal


@dataclass(frozen=True)
class Sample:
    """The parts of one explained sample to show.

    Attributes:
        result: the result of this sample alone.
        texts: words of each input of tokens, and of each target if there are several.
        others: inputs other than text.
        ledger: amounts by category; empty without a ledger.
        notes: notes, and the reason of a missing ledger.
        heading: the explained value.
        facts: further names and values.
    """

    result: Batch
    texts: list[Text]
    others: list[str]
    ledger: Mapping[str, float]
    notes: list[str]
    heading: str
    facts: Mapping[str, str] = field(default_factory=dict)


def samples_of(result: Batch, ledger: bool | None, title: str = "") -> list[Sample]:
    """The samples of a result.

    Args:
        result: the result, with tokens merged or not.
        ledger: whether to show (and compute) the ledger of each sample; None: only if it was computed.
        title: a word before the number of each sample of a batch.
    """
    one_of = len(result) > 1
    return [
        _sample(one, ledger, f"{title or 'sample'} {i}: " if one_of else "") for i, one in enumerate(result)
    ]  # fmt: skip


def _sample(one: Batch, ledger: bool | None, prefix: str) -> Sample:
    names = one.token_inputs
    texts = [text for name in names for text in _texts(one, name, name if len(names) > 1 else "")]
    notes, amounts = [], {}
    if one.target_names is None and (ledger or (ledger is None and "ledger" in vars(one))):
        try:
            amounts = one.ledger.by("category")  # type: ignore[attr-defined]
        except LatentError as reason:
            notes.append(f"no ledger: {reason}")
    others = [name for name in one.relevance if name not in names]
    heading = prefix + heading_of(one)
    return Sample(one, texts, others, amounts, [*map(str, one.notes), *notes], heading, {"rules": one.ruleset})


def _texts(one: Batch, name: str, heading: str) -> list[Text]:
    tokens, relevance = one.tokens(name)[0], one.relevance[name].select(one.SAMPLES, 0)
    if one.target_names is None:
        return [Text(words_of(tokens, relevance), heading)]
    whole = Text(words_of(tokens, relevance.sum(0)), f"{heading} all together".strip())
    values = one.target.select(one.SAMPLES, 0).tolist()
    rows = zip(one.target_names, values, relevance, strict=True)
    each = [Text(words_of(tokens, r), f"{heading} {target} ({value:.4g})".strip(), True) for target, value, r in rows]
    return [whole, *each]


def panel(sample: Sample, facts: Mapping[str, str]) -> Panel:
    """A sample on a page, with further ``facts``."""
    kind = "matrix" if sample.result.target_names is not None else "auto"
    pictures = [(name, draw(sample.result, kind, name)) for name in sample.others] if kind == "auto" else []
    return Panel(sample.heading, {**sample.facts, **facts}, sample.texts, pictures, sample.ledger, sample.notes)


def rendered(sample: Sample) -> RenderableType:
    """A sample in a terminal; images and sounds by their largest shares."""
    texts = [(text.heading, text.words) for text in sample.texts]
    words = [word for text in sample.texts if not text.folded for word in text.words]
    shares = [s for s in tables.shares(sample.result) if s.input in sample.others]
    words += [Word(s.text, s.relevance) for s in sorted(shares, key=lambda s: -abs(s.relevance))[:_MOST]]
    shown = [top_table(words), *([ledger_table(sample.ledger)] if sample.ledger else [])]
    return render_sample(sample.heading, texts, shown, sample.notes)
