"""Products along a dimension: how many factors each output has (AttnLRP prop. 3.3 gives each of n factors 1/n)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _scattered(x: Tensor, source: Tensor, dim: int, index: Tensor, include_self: bool) -> Tensor:
    return x.scatter_reduce(dim, index, source, "sum", include_self=include_self)


#: what ``count`` names in the op table: (a number for each entry of the operands, *dimension and the like) -> factors
_COUNTS: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "cumsum": torch.cumsum,
    "diagonal": lambda ones: ones.diagonal(dim1=-2, dim2=-1).sum(-1),
    "scatter": _scattered,
}


def share_of_factors(operands: list[Tensor], live: list[bool], count: str, along: list[Any]) -> Tensor:
    """1/n for each output of a product along a dimension of the operands; it broadcasts against the output.

    Only entries of live operands are factors; an output without any is a constant, with a share of 0.
    """
    each = [torch.full_like(x, float(lives), requires_grad=False) for x, lives in zip(operands, live, strict=True)]
    factors = _COUNTS[count](*each, *along)
    return torch.where(factors > 0, factors.clamp(min=1).reciprocal(), 0.0)
