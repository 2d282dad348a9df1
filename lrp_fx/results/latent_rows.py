"""Latents as rows: one for each layer, head or neuron, an entry for each token."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from lrp_fx.errors import InputError

#: neurons with rows of their own: a number per latent, or glob -> indices
Neurons = int | Mapping[str, Sequence[int]]


def rows_of(values: Tensor, lengths: Collection[int]) -> Tensor:
    """A latent as (T, rows, tokens): one row for (T, S, D), a row per head for (T, H, S, D) and (T, S, H, D).

    Any other latent is summed to (T, 1, 1).

    Args:
        values: relevance of one sample for T targets.
        lengths: numbers of tokens of the inputs.
    """
    shape = values.shape[1:]
    positions = [d for d in range(min(2, len(shape))) if shape[d] in lengths]
    if not positions or len(shape) > 3:
        return values.reshape(len(values), -1).sum(1).reshape(-1, 1, 1)
    if len(shape) < 3:
        return values.reshape(len(values), shape[0], -1).sum(-1)[:, None] if positions[0] == 0 else values
    heads = values.sum(-1)
    return heads if positions[-1] == 1 else heads.transpose(1, 2)


def by_feature(values: Tensor) -> Tensor:
    """A latent as (B, positions, features): features are dimension 1 of images and of parts of attention (heads).

    Args:
        values: (B, F), (B, S, F), (B, F, H, W), or (B, heads, S, ...).
    """
    rows = values.movedim(1, -1) if values.dim() > 3 else values
    return rows.reshape(rows.shape[0], -1, rows.shape[-1])


def neuron_rows(name: str, values: Tensor, lengths: Collection[int], neurons: Neurons) -> Iterator[tuple[str, Tensor]]:
    """(name, (T, tokens)) of selected neurons of a latent (T, S, D): by index, or the most relevant by magnitude.

    Raises:
        InputError: for an index out of range.
    """
    if values.dim() != 3 or values.shape[1] not in lengths:
        return
    width = values.shape[2]
    if isinstance(neurons, int):
        chosen = values.abs().sum((0, 1)).topk(min(neurons, width)).indices.tolist()
    else:
        chosen = [n for glob, listed in neurons.items() if fnmatchcase(name, glob) for n in listed]
    for number in chosen:
        if not -width <= number < width:
            raise InputError(f"{name} has no neuron {number}: it has {width}")
        yield f"{name} neuron {number % width}", values[..., number]


def in_order(name: str) -> list[tuple[int, str]]:
    """Sort key of a module path that orders layers by number: 2 before 10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]
