"""Facts from PyTorch's operator schemas and tags: mutation, aliasing, returns."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node


def schema(node: Node) -> Any:
    """The schema of the operator that ``node`` calls; None for a Python function and for a node that is no call."""
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def has_tag(node: Node, *tags: torch.Tag) -> bool:
    """Whether the operator has one of these tags."""
    return bool(set(tags) & set(getattr(node.target, "tags", ())))


def is_mutating(node: Node) -> bool:
    """Whether the operator writes into one of its arguments."""
    declared = schema(node)
    return bool(declared and declared.is_mutable)


def is_composite(node: Node) -> bool:
    """Whether the operator is written in terms of others, which autograd differentiates in its place."""
    target, composite = node.target, "CompositeImplicitAutograd"
    return isinstance(target, torch._ops.OpOverload) and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), composite)
    )


def is_fresh(node: Node) -> bool:
    """Whether no result of the operator aliases an argument."""
    declared = schema(node)
    return declared is not None and all(r.alias_info is None for r in declared.returns)


def shares(node: Node) -> bool:
    """Whether a result of the operator may alias an argument."""
    return schema(node) is not None and not is_fresh(node)


def is_view(node: Node) -> bool:
    """Whether a result of the operator may be a view of an argument that the operator does not write."""
    declared = schema(node)
    return declared is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in declared.returns
    )


def is_assertion(node: Node) -> bool:
    """Whether an ATen operator returns nothing and writes nothing: all it can do is to raise."""
    declared = schema(node)
    return (
        declared is not None and not declared.returns and not declared.is_mutable and declared.name.startswith("aten::")
    )
