"""The result of :func:`lrp_fx.explain_pairs`: a table of pairs with methods to save, draw and print it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.table import Table
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.pairs.pictures import draw_connections, draw_pairs, pairs_page
from lrp_fx.pairs.table import Pair, PairTable
from lrp_fx.results import Context, Stored, document
from lrp_fx.viz import write_page
from lrp_fx.viz.terminal import printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

#: kind of figure -> function that draws it
_KINDS = {"matrix": draw_pairs, "connections": draw_connections}
_SHOWN = 10  #: most printed pairs per sample


@dataclass(frozen=True, eq=False, repr=False)
class PairAttribution(PairTable, Stored):
    """Relevance of pairs of features for the similarity of two inputs (:class:`lrp_fx.pairs.table.PairTable`)."""

    KIND = "PairAttribution"

    def plot(self, kind: str = "matrix", *, sample: int | None = None, **options: Any) -> Figure:
        """A figure of one sample.

        Args:
            kind: "matrix" (:func:`lrp_fx.pairs.draw_pairs`) or "connections"
                (:func:`lrp_fx.pairs.draw_connections`); "auto" is the matrix.
            sample: index of the sample; None for the only one.
            **options: arguments of that function (``images=``, ``lines=``, ``ax=``).

        Raises:
            InputError: for another kind, and for several samples without ``sample``.
            MissingExtraError: if matplotlib is not installed.
        """
        if kind not in (*_KINDS, "auto"):
            raise InputError(f"kind={kind!r}: choose one of auto, {', '.join(_KINDS)}")
        return _KINDS["matrix" if kind == "auto" else kind](self, self._only(sample), **options)

    def show(self, *, console: Console | None = None) -> None:
        """Print each sample's strongest pairs, the sum of the others, the rest and the similarity; and the notes."""
        samples = [self._shown(number) for number in range(len(self))]
        printed(*samples, *(f"note: {note}" for note in self.notes), console=console)

    def _shown(self, sample: int) -> Table:
        similarity, rest = float(self.similarity[sample]), float(self.remainder[sample])
        strongest = self.top(_SHOWN, sample)
        table = Table(title=f"{self.kind} {similarity:.4g}", title_justify="left", box=None, pad_edge=False)
        table.add_column("pair", style="dim")
        table.add_column("relevance", justify="right")
        for pair in strongest:
            table.add_row(" - ".join(_names(pair)), f"{pair.relevance:+.4f}")
        others = similarity - rest - sum(pair.relevance for pair in strongest)
        for name, amount in (("other pairs", others), ("rest", rest), (self.kind, similarity)):
            table.add_row(name, f"{amount:+.4f}")
        return table

    def to_html(self, *, sample: int | None = None, **options: Any) -> str:
        """A self-contained page of one sample (:func:`lrp_fx.pairs.pairs_page`)."""
        return pairs_page(self, self._only(sample), **options)

    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write :meth:`to_html` to a file, and return its path."""
        return write_page(path, self.to_html(**options))

    def to_dataframe(self) -> Any:
        """A pandas data frame with a row for each pair of features without padding.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        pandas: Any = require("pandas", "results")
        count = self.relevance.shape[1] * self.relevance.shape[2]
        rows = []
        for sample in range(len(self)):
            for pair in sorted(self.top(count, sample), key=lambda p: (p.first, p.second)):
                first, second = _names(pair)
                rows.append(
                    {"sample": sample, "first": pair.first, "second": pair.second, "first_text": first,
                     "second_text": second, "relevance": pair.relevance}
                )  # fmt: skip
        return pandas.DataFrame(rows)

    def _only(self, sample: int | None) -> int:
        if sample is None and len(self) != 1:
            raise InputError(f"a picture shows one sample, and there are {len(self)}: give sample=")
        return sample or 0

    def _document(self, inputs: bool) -> document.Document:
        about = {"similarity": self.kind, "pair_tokens": self.tokens, "grids": self.grids}
        tensors = {"table": self.table, "target": self.similarity}
        tensors |= {f"shown/{side}": shown for side, shown in enumerate(self.shown)}
        return document.Document({**document.head(self.KIND, self.ruleset, Context()), **about}, tensors)

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        tokens = about.get("pair_tokens")
        grids = [None if g is None else (int(g[0]), int(g[1])) for g in about["grids"]]
        texts = None if tokens is None else [[[str(t) for t in row] for row in side] for side in tokens]
        return cls(
            tensors["table"], tensors["target"], document.text(about, "similarity"), document.text(about, "rules"),
            (tensors["shown/0"].bool(), tensors["shown/1"].bool()), None if texts is None else (texts[0], texts[1]),
            (grids[0], grids[1]),
        )  # fmt: skip

    def _check(self) -> None:
        shapes = [(len(self.table), size - 1) for size in self.table.shape[1:]]
        if self.table.dim() != 3 or [tuple(s.shape) for s in self.shown] != shapes:
            raise ValueError(f"a table of shape {tuple(self.table.shape)} does not fit its features")
        if self.similarity.shape != (len(self.table),):
            raise ValueError(f"similarities of shape {tuple(self.similarity.shape)}")
        if not torch.is_floating_point(self.table):
            raise ValueError(f"relevance is {self.table.dtype}")


def _names(pair: Pair) -> tuple[str, str]:
    return (str(pair.first), str(pair.second)) if pair.tokens is None else pair.tokens
