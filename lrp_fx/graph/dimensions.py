"""Dimensions and sizes of captured values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx import Node


def permutation(node: Node) -> list[int]:
    """For each dimension of the result of ``node``, the dimension of the operand that it comes from.

    Found by running the operator on a meta tensor whose sizes all differ.

    Args:
        node: a movement of the form "permute" (``lrp_fx.operators.table.FORMS``).
    """
    rank = node.all_input_nodes[0].meta["val"].dim()
    example = torch.empty([2 + dim for dim in range(rank)], device="meta")
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: example)  # type: ignore[misc]
    return [size - 2 for size in node.target(*args, **kwargs).shape]  # type: ignore[operator]


def example_size(size: Any) -> int:
    """A size as an integer; a dynamic one has its value in the example inputs.

    Raises:
        TypeError: for a data-dependent size.
    """
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def same_sizes(some: Any, others: Any) -> bool:
    """Whether two shapes are equal; symbolic sizes are compared as text, which adds no guard."""
    return [str(n) for n in some] == [str(n) for n in others]
