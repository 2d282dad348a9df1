"""Products along a dimension: the number of factors of each output (AttnLRP prop. 3.3: each of n factors gets 1/n)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _scattered(x: Tensor, source: Tensor, dim: int, index: Tensor, include_self: bool) -> Tensor:
    return x.scatter_reduce(dim, index, source, "sum", include_self=include_self)


#: ``count`` of the op table -> function: (ones for live entries, *other arguments) -> number of factors
_COUNTS: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "cumsum": torch.cumsum,
    "diagonal": lambda ones: ones.diagonal(dim1=-2, dim2=-1).sum(-1),
    "scatter": _scattered,
}


def share_of_factors(operands: list[Tensor], live: list[bool], count: str, along: list[Any]) -> Tensor:
    """1/n for each output of a product of n factors along a dimension; broadcasts against the output.

    Only entries of live operands count. An output without live factors is a constant, with a share of 0.
    """
    each = [torch.full_like(x, float(lives), requires_grad=False) for x, lives in zip(operands, live, strict=True)]
    factors = _COUNTS[count](*each, *along)
    return torch.where(factors > 0, factors.clamp(min=1).reciprocal(), 0.0)
