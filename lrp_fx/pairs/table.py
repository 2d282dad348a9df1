"""Relevance of pairs as a table that sums to the similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.results import Note
from lrp_fx.results.notes import CANCELLING, Signs

Tokens = tuple[list[list[str]], list[list[str]]]
Grid = tuple[int, int] | None


@dataclass(frozen=True)
class Pair:
    """One pair of features.

    Attributes:
        first: index of the feature of the first input.
        second: index of the feature of the second input.
        relevance: relevance of the pair.
        tokens: texts of both features; None without tokens.
    """

    first: int
    second: int
    relevance: float
    tokens: tuple[str, str] | None = None


def _little(signs: Signs) -> str | None:
    few = signs.little
    if not few.any():
        return None
    share = float((signs.inputs / signs.target)[few].median())
    says = f"hold {share:.0%} of the similarity" if share >= 0 else "add up to the opposite sign of the similarity"
    return (
        f"pairs of features {says}{signs.count(few)}: biases, positions or softmax hold the rest (the last row and "
        'column of .table). An output= that normalises takes all: give the embedding before, and similarity="cosine".'
    )


def _cancelling(signs: Signs) -> str | None:
    large = signs.cancelling
    if not large.any():
        return None
    return (
        f"magnitudes of relevance add up to over {CANCELLING} times the similarity{signs.count(large)}: large parts "
        'cancel, and the picture shows the parts. Try rules="vit_gamma" or "epsilon_plus".'
    )


_SIGNS: dict[str, Callable[[Signs], str | None]] = {"small share": _little, "cancelling": _cancelling}


@dataclass(frozen=True, eq=False, repr=False)
class PairTable:
    """Relevance of pairs of features for the similarity of two inputs; I and J features, B pairs of inputs.

    Each embedding coordinate is the sum of the relevance of its features and a rest: the entries of its ledger besides
    the inputs (biases, positions, softmax, stabilisers). The similarity, a sum of products of coordinates, is therefore
    a sum of four parts: features with features, features with the other side's rest (twice), and rest with rest. These
    are the entries of :attr:`table`, which sum to the similarity exactly; ``relevance`` alone does without a rest.

    Attributes:
        table: (B, I + 1, J + 1): the last row is the rest of the first input, the last column the rest of the second.
        similarity: (B,) similarities.
        kind: "dot" or "cosine".
        ruleset: name of the rule set.
        shown: (B, I) and (B, J): features that are not padding.
        tokens: per side, per sample, the text of each feature; None without ``decode``.
        grids: per side, rows and columns of patches; None for features that are not patches.
    """

    table: Tensor
    similarity: Tensor
    kind: str
    ruleset: str
    shown: tuple[Tensor, Tensor]
    tokens: Tokens | None = None
    grids: tuple[Grid, Grid] = (None, None)

    @property
    def relevance(self) -> Tensor:
        """(B, I, J) relevance of every pair."""
        return self.table[:, :-1, :-1]

    @property
    def remainder(self) -> Tensor:
        """(B,) similarity outside of pairs of features: the sum of the last row and last column of :attr:`table`."""
        return self.table[:, -1].sum(-1) + self.table[:, :-1, -1].sum(-1)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Signs of a weak map, each with a remedy (as in :class:`lrp_fx.Attribution`)."""
        if self.table.is_meta:
            return ()
        signs = Signs({"pairs": self.relevance}, self.similarity.double(), None)
        texts = ((name, describe(signs)) for name, describe in _SIGNS.items())
        return tuple(Note(name, text) for name, text in texts if text is not None)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice) -> Self:
        """The result of some samples.

        Raises:
            IndexError: for a sample out of range.
        """
        rows = [range(len(self))[index]] if isinstance(index, int) else list(range(len(self)))[index]
        tokens = None if self.tokens is None else ([self.tokens[0][i] for i in rows], [self.tokens[1][i] for i in rows])
        shown = (self.shown[0][rows], self.shown[1][rows])
        return replace(self, table=self.table[rows], similarity=self.similarity[rows], shown=shown, tokens=tokens)

    def top(self, k: int = 10, sample: int = 0) -> list[Pair]:
        """The ``k`` pairs of one sample with the largest magnitude of relevance, without padding.

        Raises:
            InputError: for a sample out of range.
        """
        if not -len(self.table) <= sample < len(self.table):
            raise InputError(f"sample {sample}: there are {len(self.table)} of them")
        rows, columns = (shown[sample].nonzero()[:, 0] for shown in self.shown)
        values = self.relevance[sample][rows][:, columns]
        order = values.flatten().abs().argsort(descending=True, stable=True)[:k]
        first, second = rows[order // max(len(columns), 1)], columns[order % max(len(columns), 1)]
        amounts = values.flatten()[order]
        return [
            Pair(i, j, amount, None if self.tokens is None else self._texts(sample, i, j))
            for i, j, amount in zip(first.tolist(), second.tolist(), amounts.tolist(), strict=True)
        ]

    def _texts(self, sample: int, first: int, second: int) -> tuple[str, str]:
        assert self.tokens is not None
        return self.tokens[0][sample][first], self.tokens[1][sample][second]

    def __repr__(self) -> str:
        shown = torch.stack([self.similarity, self.relevance.sum((1, 2)), self.remainder]).tolist()
        similarity, pairs, rest = ([float(f"{v:.6g}") for v in row] for row in shown)
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return (
            f"{type(self).__name__}(relevance={tuple(self.relevance.shape)}, {self.kind}={similarity}, pairs={pairs}, "
            f"remainder={rest}, rules={self.ruleset!r}){notes}"
        )
