"""The result of :func:`lrp_fx.explain_pairs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
        second: index of that of the second.
        relevance: of the pair.
        tokens: what the two are, where tokens were given.
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
class PairAttribution:
    """Relevance of pairs of features for the similarity of two inputs; I and J features, B pairs of inputs.

    Each embedding coordinate is what its features got plus a rest that biases, positions, softmax and stabilisers
    hold (the entries of its ledger but the inputs). The similarity, a sum of products of coordinates, is so the sum of
    four parts: features with features, features with the other side's rest (twice), and rest with rest. That is
    :attr:`table`, whose entries sum to the similarity exactly; ``relevance`` alone does where there is no rest.

    Attributes:
        table: (B, I + 1, J + 1): the last row is the rest of the first input, the last column that of the second.
        similarity: (B,).
        kind: "dot" or "cosine".
        ruleset: name of the rule set.
        shown: (B, I) and (B, J): features that are no padding.
        tokens: per side, per sample, the text of each feature; None where it was not given.
        grids: per side, rows and columns of patches where features are those of an image.
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
        """(B,) similarity that no pair of features holds: the last row and the last column of :attr:`table`."""
        return self.table[:, -1].sum(-1) + self.table[:, :-1, -1].sum(-1)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Signs that the map is weak, each with what to try (as of :class:`lrp_fx.Attribution`)."""
        if self.table.is_meta:
            return ()
        signs = Signs({"pairs": self.relevance}, self.similarity.double(), None)
        said = ((name, say(signs)) for name, say in _SIGNS.items())
        return tuple(Note(name, text) for name, text in said if text is not None)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[PairAttribution]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice) -> PairAttribution:
        """Some samples, as a result of their own.

        Raises:
            IndexError: for a sample that is not there.
        """
        rows = [range(len(self))[index]] if isinstance(index, int) else list(range(len(self)))[index]
        tokens = None if self.tokens is None else ([self.tokens[0][i] for i in rows], [self.tokens[1][i] for i in rows])
        shown = (self.shown[0][rows], self.shown[1][rows])
        return replace(self, table=self.table[rows], similarity=self.similarity[rows], shown=shown, tokens=tokens)

    def top(self, k: int = 10, sample: int = 0) -> list[Pair]:
        """The ``k`` pairs of one sample with the largest magnitude of relevance, padding left out.

        Raises:
            InputError: for a sample that was not explained.
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
            f"PairAttribution(relevance={tuple(self.relevance.shape)}, {self.kind}={similarity}, pairs={pairs}, "
            f"remainder={rest}, rules={self.ruleset!r}){notes}"
        )
