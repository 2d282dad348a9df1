"""Sums within a result: over tokens of a word, samples, features, layers. Totals do not change."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.results.context import Tokens
from lrp_fx.results.words import By, find_groups, merged


class Grouping:
    """Groups of the tokens of every sample of a batch.

    Attributes:
        index: (B, S) group number of every position; padding has the last group.
        tokens: per sample, its groups as tokens, padded to the largest number of groups.
    """

    def __init__(self, tokens: Sequence[Tokens], by: By) -> None:
        groups = [find_groups(one, by) for one in tokens]
        padded = any(any(one.padding) for one in tokens) or len({len(g) for g in groups}) > 1
        width = max(map(len, groups), default=0) + padded
        self.index = torch.full((len(tokens), max(map(len, tokens), default=0)), width - 1, dtype=torch.long)
        for row, listed in zip(self.index, groups, strict=True):
            for number, group in enumerate(listed):
                row[torch.tensor(group, dtype=torch.long)] = number
        shown = (merged(one, listed) for one, listed in zip(tokens, groups, strict=True))
        self.tokens = tuple(_filled(one, width) for one in shown)

    @property
    def width(self) -> int:
        """Number of groups."""
        return max(map(len, self.tokens), default=0)

    def sums(self, values: Tensor, samples: int, dim: int) -> Tensor:
        """Sums over each group.

        Args:
            values: the tensor to sum.
            samples: dimension of the samples.
            dim: a later dimension, of the positions; in the result, of the groups.
        """
        shape = [1] * values.dim()
        shape[samples], shape[dim] = self.index.shape
        index = self.index.to(values.device).reshape(shape).expand(values.shape)
        sizes = list(values.shape)
        sizes[dim] = self.width
        return values.new_zeros(sizes).scatter_add(dim, index, values)


def _filled(tokens: Tokens, width: int) -> Tokens:
    """Tokens, padded to ``width``."""
    more = width - len(tokens)
    offsets = None if tokens.offsets is None else (*tokens.offsets, *[(0, 0)] * more)
    return Tokens(
        (*tokens.texts, *[""] * more), (*tokens.special, *[True] * more), (*tokens.padding, *[True] * more), offsets,
        None if tokens.words is None else (*tokens.words, *[None] * more), tokens.text,
    )  # fmt: skip


class Joined(Grouping):
    """Groups of two consecutive parts of every sample."""

    def __init__(self, first: Grouping, second: Grouping) -> None:
        self.index = torch.cat([first.index, second.index + first.width], 1)
        self.tokens = tuple(_behind(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


def _behind(a: Tokens, b: Tokens) -> Tokens:
    offsets = None if a.offsets is None or b.offsets is None else a.offsets + b.offsets
    words = None
    if a.words is not None and b.words is not None:
        words = a.words + tuple(None if w is None else w + len(a) for w in b.words)
    return Tokens(a.texts + b.texts, a.special + b.special, a.padding + b.padding, offsets, words, a.text)


def without_features(values: Tensor, leading: int) -> Tensor:
    """Sum over features: the channels of images, (..., C, H, W), and the last dimension of sequences, (..., S, D).

    Args:
        values: relevance.
        leading: number of dimensions before those of the tensor itself (samples, targets).
    """
    rank = values.dim() - leading
    return values.sum(leading) if rank >= 3 else values.sum(-1) if rank == 2 else values


def sum_layers(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum over layers: latents whose names differ in numbers only are added.

    Raises:
        InputError: for latents of different sizes.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, value in latents.items():
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|@|$)|^\d+(?=\.|@|$)", "*", name), []).append(value)
    for name, values in groups.items():
        if len(shapes := {tuple(v.shape) for v in values}) > 1:
            raise InputError(f"the layers {name} differ in size: {', '.join(map(str, sorted(shapes)))}")
    return {name: torch.stack(values).sum(0) for name, values in groups.items()}
