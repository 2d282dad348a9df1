"""Dimensions of tensors: where an operator that moves them puts each."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx import Node


def permutation(node: Node) -> list[int]:
    """For each dimension of what ``node`` returns, the dimension of its operand that it is.

    Seen by running the operator on a tensor whose sizes all differ.

    Args:
        node: a movement of the form "permute" (``lrp_fx.operators.table.FORMS``).
    """
    rank = node.all_input_nodes[0].meta["val"].dim()
    example = torch.empty([2 + dim for dim in range(rank)], device="meta")
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: example)  # type: ignore[misc]
    return [size - 2 for size in node.target(*args, **kwargs).shape]  # type: ignore[operator]


def same_sizes(some: object, others: object) -> bool:
    """Whether two shapes are the same, sizes that are formulas by how they are written: no guard is added."""
    return [str(n) for n in some] == [str(n) for n in others]  # type: ignore[attr-defined]
