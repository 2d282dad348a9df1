"""Runs an operator again on its recorded arguments: values, results and natural gradients at one node of a sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.explain.account import Account, safe_dot
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import bind
from lrp_fx.rules.derivatives import differentiable


def call(account: Account, replaced: dict[Slot, Tensor]) -> Any:
    """The captured operator on recorded arguments, some of them replaced."""
    args, kwargs = account.arguments
    schema = list(bind(account.node))

    def swap(name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return [replaced.get(Slot(name, i), plain(v)) for i, v in enumerate(value)]
        return replaced.get(Slot(name), plain(value))

    names = positional(account.node, schema)
    return differentiable(account.node.target)(
        *[swap(n, a) for n, a in zip(names, args, strict=False)], **{k: swap(k, v) for k, v in kwargs.items()}
    )


def positional(node: Node, names: list[str]) -> list[str]:
    """Argument names in the order of the operator's schema; ``names`` without a schema."""
    schema = getattr(node.target, "_schema", None)
    return [a.name for a in schema.arguments] if schema is not None else names


def plain(value: Any) -> Any:
    """A tensor as a constant; any other value unchanged."""
    return value.detach() if isinstance(value, Tensor) else value


def value_of(account: Account, slot: Slot) -> Tensor | None:
    """The recorded tensor of one slot; None without one."""
    args, kwargs = account.arguments
    bound = dict(zip(positional(account.node, list(bind(account.node))), args, strict=False)) | kwargs
    value = bound.get(slot.name)
    value = value[slot.position] if slot.position is not None and value is not None else value
    return value.detach() if isinstance(value, Tensor) else None


def natural(account: Account, slots: list[Slot], scale: Tensor | float = 1.0) -> dict[Slot, float]:
    """Sum of x times the operator's own gradient, for each of ``slots``, at the recorded values."""
    return {slot: safe_dot(x, g) for slot, (x, g) in gradients(account, slots, scale).items()}


def gradients(account: Account, slots: list[Slot], scale: Tensor | float = 1.0) -> dict[Slot, tuple[Tensor, Tensor]]:
    """x and the operator's own gradient, times ``scale``, for each of ``slots``, at the recorded values."""
    values = {s: v for s in slots if (v := value_of(account, s)) is not None}
    if not values:
        return {}
    exact = account.outputs[0][0].dtype  # added integers and booleans have relevance, too
    values = {s: v if v.is_floating_point() or v.is_complex() else v.to(exact) for s, v in values.items()}
    if account.outputs[0][0].dtype is torch.float64:  # a constant in single precision would round its cotangent
        values = {s: v.double() for s, v in values.items()}
    leaves = {s: v.clone().requires_grad_() for s, v in values.items()}
    with torch.enable_grad():
        result = call(account, leaves)
        outputs = [pytree.tree_leaves(result)[i] for i in account.positions]
        pairs = [(r, g * scale) for r, (_, g) in zip(outputs, account.outputs, strict=True) if r.requires_grad]
        if not pairs:
            return {}
        grads = torch.autograd.grad(
            [r for r, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True
        )
    return {s: (v, g) for (s, v), g in zip(values.items(), grads, strict=True) if g is not None}
