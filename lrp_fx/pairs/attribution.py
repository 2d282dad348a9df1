"""The result of :func:`lrp_fx.explain_pairs`: a table of pairs that is drawn, shown and saved like every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.pairs.pictures import draw_connections, draw_pairs, pairs_page, sides_of
from lrp_fx.pairs.table import SIDES, Pair, PairTable
from lrp_fx.results import Tokens, document, views
from lrp_fx.results.pictures import heading_of, words_of
from lrp_fx.viz import Text, Word
from lrp_fx.viz.viewer import encode
from lrp_fx.viz.viewer.schema import Input, Matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: kind of figure -> function that draws it
_KINDS = {"matrix": draw_pairs, "connections": draw_connections}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PairAttribution(PairTable):
    """Relevance of pairs of features for the similarity of two inputs (:class:`lrp_fx.pairs.table.PairTable`)."""

    KIND: ClassVar[str] = "PairAttribution"

    def plot(  # type: ignore[override]
        self, kind: str = "auto", *, input: str | None = None, sample: int | None = None, **options: Any
    ) -> Figure:
        """A figure of one sample.

        Args:
            kind: "matrix" (:func:`lrp_fx.pairs.draw_pairs`) or "connections"
                (:func:`lrp_fx.pairs.draw_connections`); "auto" is the matrix.
            input: not for pairs, which have both inputs.
            sample: index of the sample; None for the only one.
            **options: arguments of that function (``images=``, ``lines=``, ``ax=``).

        Raises:
            InputError: for another kind, and for several samples without ``sample``.
            MissingExtraError: if matplotlib is not installed.
        """
        if kind not in (*_KINDS, "auto"):
            raise InputError(f"kind={kind!r}: choose one of auto, {', '.join(_KINDS)}")
        if input is not None:
            raise InputError(f"input={input!r}: a figure of pairs shows both inputs")
        if sample is None and len(self) != 1:
            raise InputError(f"a picture shows one sample, and there are {len(self)}: give sample=")
        return _KINDS["matrix" if kind == "auto" else kind](self, sample or 0, **options)

    def to_html(
        self,
        *,
        title: str = "Why these two are alike",
        facts: Mapping[str, str] | None = None,
        words: bool = True,
        ledger: bool = True,
        lines: int = 12,
    ) -> str:
        """A self-contained page of every sample: both texts with lines between them, the strongest pairs, all pairs.

        Args:
            title: heading of the page.
            facts: names and values to show with every sample ("model": "...").
            words: show whole words instead of the tokenizer's pieces.
            ledger: show the four parts of the similarity.
            lines: number of pairs with a line.

        Raises:
            MissingExtraError: if jinja2 is not installed.
        """
        return pairs_page(self._in_words(words), title=title, facts=facts, lines=lines, amounts=ledger)

    def to_dataframe(self, by: str = "token") -> Any:
        """A pandas data frame with a row for each pair without padding, or for each part of the similarity.

        Args:
            by: "token" or "word" (pairs of them), or "category" (the four parts).

        Raises:
            MissingExtraError: if pandas is not installed.
            InputError: for another name.
        """
        if by == "category":
            return super().to_dataframe(by)
        pandas: Any = require("pandas", "results")
        listed = self._by(by)
        pairs = (pair for sample in range(len(self)) for pair in sorted(listed.ranked(sample), key=_place))
        rows = [
            {"sample": pair.sample, "first": pair.first, "second": pair.second, "first_text": pair.names[0],
             "second_text": pair.names[1], "relevance": pair.relevance}
            for pair in pairs
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def viewer_parts(self) -> tuple[list[Input], list[Matrix]]:
        """The whole table as a matrix."""
        labels, table = sides_of(self)
        return [], [
            {"name": "first by second", "rows": labels[0], "columns": labels[1], "summed": False,
             "relevance": encode.pack(table[None].numpy())}
        ]  # fmt: skip

    def _sample(self, ledger: bool | None) -> views.Sample:
        """Both texts, each word with the sum of all its pairs; and the strongest pairs."""
        strongest = [Word(" – ".join(pair.names), pair.relevance) for pair in self.ranked(special=False)]
        sums = {side: self.pairs.sum(2 - i) + self.relevance[side] for i, side in enumerate(SIDES)}
        return views.Sample(
            [Text(words_of(self.tokens(side)[0], sums[side][0]), side) for side in self.token_inputs],
            lambda: strongest,
            [("all pairs", partial(draw_pairs, self))],
            {} if ledger is False else self.amounts(),
            [str(note) for note in self.notes],
            heading_of(self),
            {"rules": self.ruleset},
            strongest,
        )

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"shown/{side}": mask for side, mask in enumerate(self.masks or ())}
        return {"similarity": self.kind, "grids": self.grids}, tensors

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        grids = tuple(None if g is None else (int(g[0]), int(g[1])) for g in about["grids"])
        masks = tuple(tensors[f"shown/{side}"].bool() for side in (0, 1) if f"shown/{side}" in tensors)
        fields: dict[str, Any] = {"grids": grids, "masks": masks or None, "kind": document.text(about, "similarity")}
        if "table" not in tensors:
            return super()._read(about, tensors, **fields, **more)
        context, texts = document.read_context(about), about.get("pair_tokens")  # a file of the first version
        sides = zip(SIDES, texts or (), strict=texts is not None)
        tokens = {side: tuple(map(Tokens.plain, rows)) for side, rows in sides}
        return cls.of_table(
            tensors["table"], tensors["target"], fields.pop("kind"), document.text(about, "rules"),
            context=replace(context, tokens=tokens), **fields,
        )  # fmt: skip


def _place(pair: Pair) -> tuple[int, int]:
    return pair.first, pair.second
