"""Relevance of pairs as a table that sums to the similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.pairs.notes import notes_on
from lrp_fx.results import Note, Result, Tokens
from lrp_fx.results.merging import Grouping
from lrp_fx.results.tables import Row, with_sign

Grid = tuple[int, int] | None
SIDES = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """One pair of features.

    Attributes:
        first: index of the feature of the first input.
        second: index of the feature of the second input.
        relevance: relevance of the pair.
        tokens: texts of both features; None for features that are not tokens.
        sample: index of the sample.
    """

    first: int
    second: int
    relevance: float
    tokens: tuple[str, str] | None = None
    sample: int = 0

    @property
    def names(self) -> tuple[str, str]:
        """The texts of both features; of features that are not tokens, their indices."""
        return (str(self.first), str(self.second)) if self.tokens is None else self.tokens


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PairTable(Result):
    """Relevance of pairs of features for the similarity of two inputs; I and J features, B pairs of inputs.

    Each embedding coordinate is the sum of the relevance of its features and a rest: the entries of its ledger besides
    the inputs (biases, positions, softmax, stabilisers). The similarity, a sum of products of coordinates, is therefore
    a sum of four parts, which are its ``relevance``: features with features (``"pairs"``, (B, I, J)), features with the
    other side's rest (``"first"``, (B, I), and ``"second"``, (B, J)), and rest with rest (``"rest"``, (B,)). Together
    they are the similarity exactly; :attr:`table` has all four.

    Attributes:
        relevance: the four parts.
        target: (B,) similarities.
        kind: "dot" or "cosine".
        masks: (B, I) and (B, J): features that are not padding; None if their tokens say it.
        grids: per side, rows and columns of patches; None for features that are not patches.
        inputs: "first", "second": the explained input of each side.
        context: the tokens of "first" and "second".
    """

    TITLES: ClassVar[Mapping[str, str]] = {
        "pairs": "pairs", "first": "first with rest", "second": "second with rest", "rest": "rest with rest",
    }  # fmt: skip

    kind: str
    masks: tuple[Tensor, Tensor] | None = None
    grids: tuple[Grid, Grid] = (None, None)

    @classmethod
    def of_table(cls, table: Tensor, similarity: Tensor, kind: str, ruleset: str, **fields: Any) -> Self:
        """The result of a (B, I + 1, J + 1) table, whose last row and column are the rests."""
        relevance = {
            "pairs": table[:, :-1, :-1], "first": table[:, :-1, -1], "second": table[:, -1, :-1],
            "rest": table[:, -1, -1],
        }  # fmt: skip
        return cls(relevance=relevance, latents={}, target=similarity, ruleset=ruleset, kind=kind, **fields)

    @property
    def pairs(self) -> Tensor:
        """(B, I, J) relevance of every pair."""
        return self.relevance["pairs"]

    @property
    def similarity(self) -> Tensor:
        """(B,) similarities: the explained values."""
        return self.target

    @property
    def table(self) -> Tensor:
        """(B, I + 1, J + 1): the pairs; the last row is the rest of the first input, the last column of the second."""
        rows = torch.cat([self.pairs, self.relevance["first"][:, :, None]], 2)
        last = torch.cat([self.relevance["second"], self.relevance["rest"][:, None]], 1)
        return torch.cat([rows, last[:, None]], 1)

    @property
    def remainder(self) -> Tensor:
        """(B,) similarity outside of pairs of features: the other three parts."""
        return self.relevance["first"].sum(1) + self.relevance["second"].sum(1) + self.relevance["rest"]

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """(B, I) and (B, J): features that are not padding."""
        return self._mask(0), self._mask(1)

    def tokens(self, name: str | None = None) -> tuple[Tokens, ...]:
        """The tokens of every sample of one side (:meth:`lrp_fx.results.Result.tokens`); what is masked is padding."""
        listed = super().tokens(name)
        if self.masks is None:
            return listed
        shown = self.masks[SIDES.index(name or self.token_inputs[0])].tolist()
        return tuple(replace(one, padding=tuple(not s for s in row)) for one, row in zip(listed, shown, strict=True))

    def _mask(self, side: int) -> Tensor:
        if self.masks is not None:
            return self.masks[side]
        tokens = self.context.tokens.get(SIDES[side])
        if tokens is None:
            return torch.ones_like(self.relevance[SIDES[side]], dtype=torch.bool)
        return ~torch.tensor([one.padding for one in tokens], dtype=torch.bool, device=self.target.device)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Signs of a weak map, each with a remedy (as in :class:`lrp_fx.Attribution`)."""
        return (*self.context.notes, *notes_on(self.pairs, self.target))

    def amounts(self) -> dict[str, float]:
        """The four parts, summed; together the similarity."""
        return {title: float(self.relevance[part].double().sum()) for part, title in self.TITLES.items()}

    def top(  # type: ignore[override]
        self, k: int = 5, sign: str | int = "both", by: str = "word", special: bool = False
    ) -> list[Pair]:
        """The k pairs with the largest magnitude of every sample, the largest first, without padding.

        Args:
            k: number of pairs.
            sign: "positive", "negative" or "both"; also 1, -1, 0.
            by: "word" or "token", for inputs of tokens.
            special: include special tokens (start, separator, end).
        """
        merged = self._by(by)
        return [pair for sample in range(len(self)) for pair in merged.ranked(sample, with_sign(sign), special)[:k]]

    def ranked(self, sample: int = 0, sign: Any = None, special: bool = True) -> list[Pair]:
        """All pairs of one sample, without padding, the one with the largest magnitude first."""
        values = self.pairs[sample].detach().double().cpu()
        sides = [self._places(side, sample, special) for side in (0, 1)]
        texts = [self.texts(side, sample) for side in (0, 1)]
        amounts = values[sides[0]][:, sides[1]].flatten()
        pairs = []
        for place in amounts.abs().argsort(descending=True, stable=True).tolist():
            i, j = sides[0][place // len(sides[1])], sides[1][place % len(sides[1])]
            named = None if texts[0] is None or texts[1] is None else (texts[0][i], texts[1][j])
            amount = float(amounts[place])
            if sign is None or sign(amount):
                pairs.append(Pair(i, j, amount, named, sample))
        return pairs

    def _places(self, side: int, sample: int, special: bool) -> list[int]:
        listed = self._mask(side)[sample].nonzero()[:, 0].tolist()
        if special or SIDES[side] not in self.token_inputs:
            return listed
        tokens = self.tokens(SIDES[side])[sample]
        return [i for i in listed if not tokens.special[i]]

    def texts(self, side: int, sample: int) -> tuple[str, ...] | None:
        """Texts of the features of side 0 or 1; None for features that are not tokens."""
        return self.tokens(SIDES[side])[sample].texts if SIDES[side] in self.token_inputs else None

    # -- what the base does with one dimension of tokens, here with two

    def _of(self, rows: list[int]) -> Self:
        masks = None if self.masks is None else (self.masks[0][rows], self.masks[1][rows])
        return replace(super()._of(rows), masks=masks)

    def _merged(self, groupings: dict[str, Grouping]) -> Self:
        pairs = self.pairs
        for name, grouping in groupings.items():
            pairs = grouping.sums(pairs, 0, 1 + SIDES.index(name))
        merged = super()._merged(groupings)
        masks = None if self.masks is None else tuple(
            _shown(groupings[side].tokens, mask) if side in groupings else mask
            for side, mask in zip(SIDES, self.masks, strict=True)
        )  # fmt: skip
        return merged._derived(relevance={**merged.relevance, "pairs": pairs}, masks=masks)

    def aggregate(self, over: str) -> Self:
        """Sum over "samples"; as :meth:`lrp_fx.results.Result.aggregate`.

        Raises:
            InputError: for "features" and "layers", which pairs do not have.
        """
        if over != "samples":
            raise InputError(f'over={over!r}: relevance of pairs can be summed over "samples"')
        return self._of_all_samples()

    def _of_all_samples(self) -> Self:
        masks = (self._mask(0).any(0, keepdim=True), self._mask(1).any(0, keepdim=True))
        return replace(super()._of_all_samples(), masks=masks)

    def to_shap(self, *, input: str | None = None) -> Any:
        """Not for pairs.

        Raises:
            InputError: always.
        """
        raise InputError("a shap.Explanation has a number for each feature, not for pairs: use .to_dataframe()")

    def _category_rows(self) -> list[Row]:
        return [
            {"sample": i, "category": category, "amount": amount}
            for i, one in enumerate(self)
            for category, amount in one.amounts().items()
        ]

    def _told(self) -> str:
        shown = torch.stack([self.similarity, self.pairs.sum((1, 2)), self.remainder]).tolist()
        similarity, pairs, rest = ([float(f"{v:.6g}") for v in row] for row in shown)
        return f"{self.kind}={similarity}, pairs={pairs}, remainder={rest}"

    def _check(self) -> None:
        super()._check()
        if self.relevance.keys() != self.TITLES.keys() or self.pairs.dim() != 3:
            raise ValueError(f"parts {', '.join(self.relevance)} are no table of pairs")
        batch, first, second = self.pairs.shape
        sizes = {"first": (batch, first), "second": (batch, second), "rest": (batch,)}
        wrong = [n for n, size in sizes.items() if self.relevance[n].shape != size]
        wrong += [s for s, mask in zip(SIDES, self.masks or (), strict=False) if mask.shape != sizes[s]]
        if wrong or self.target.shape != (batch,):
            raise ValueError(f"a table of shape {tuple(self.pairs.shape)} does not fit its features ({wrong})")


def _shown(tokens: tuple[Tokens, ...], like: Tensor) -> Tensor:
    return ~torch.tensor([one.padding for one in tokens], dtype=torch.bool, device=like.device)
