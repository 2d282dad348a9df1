"""Latents as rows: one for each layer, head or neuron, an entry for each token."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from lrp_fx.errors import InputError

#: which neurons get a row of their own: so many of each latent, or glob -> their numbers
Neurons = int | Mapping[str, Sequence[int]]


def rows_of(values: Tensor, lengths: Collection[int]) -> Tensor:
    """(T, rows, tokens) of a latent: of (T, S, D) one row, of (T, H, S, D) and (T, S, H, D) a row per head; else
    (T, 1, 1), its sum.

    Args:
        values: relevance of one sample, targets first.
        lengths: how many tokens inputs have.
    """
    shape = values.shape[1:]
    positions = [d for d in range(min(2, len(shape))) if shape[d] in lengths]
    if not positions or len(shape) > 3:
        return values.reshape(len(values), -1).sum(1).reshape(-1, 1, 1)
    if len(shape) < 3:
        return values.reshape(len(values), shape[0], -1).sum(-1)[:, None] if positions[0] == 0 else values
    heads = values.sum(-1)
    return heads if positions[-1] == 1 else heads.transpose(1, 2)


def neuron_rows(name: str, values: Tensor, lengths: Collection[int], neurons: Neurons) -> Iterator[tuple[str, Tensor]]:
    """(name, (T, tokens)) of the neurons of a latent (T, S, D) that are asked for: by number, or those with the largest
    magnitudes of relevance.

    Raises:
        InputError: for a neuron that the latent does not have.
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
    """Layers by their numbers: 2 before 10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]
