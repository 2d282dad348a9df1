"""Products along a dimension: how many factors each output has (AttnLRP prop. 3.3 gives each of n factors 1/n)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: what ``count`` names in the op table: (ones in the operand's shape, *dimension and keepdim as given) -> factors
_COUNTS: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "cumsum": torch.cumsum,
    "diagonal": lambda ones: ones.diagonal(dim1=-2, dim2=-1).sum(-1),
}


def share_of_factors(x: Tensor, count: str, along: list[Any]) -> Tensor:
    """1/n for each output of a product along a dimension of x; it broadcasts against the output."""
    return _COUNTS[count](torch.ones_like(x, requires_grad=False), *along).reciprocal()
