"""Operand slots: read and replace the tensor arguments of a node by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.fx import Node

from lrp_fx.operators.table import OpSpec, bind, coefficients, set_arg


class Slot(NamedTuple):
    """One tensor argument: its schema name, and its index if that argument is a list of tensors."""

    name: str
    position: int | None = None


def slots(node: Node, names: tuple[str, ...]) -> dict[Slot, Node]:
    """Every node among the arguments called ``names``, lists flattened."""
    bound = bind(node)
    operands: dict[Slot, Node] = {}
    for name in names:
        value = bound.get(name)
        if isinstance(value, Node):
            operands[Slot(name)] = value
        elif isinstance(value, (list, tuple)):
            operands |= {Slot(name, i): v for i, v in enumerate(value) if isinstance(v, Node)}
    return operands


def all_slots(node: Node) -> dict[Slot, Node]:
    """Every node argument of ``node``."""
    return slots(node, tuple(bind(node)))


def declared(node: Node, spec: OpSpec) -> dict[Slot, Node]:
    """The operands that can carry relevance by the op table, added terms included."""
    return slots(node, spec.args + spec.terms)


def addends(node: Node, spec: OpSpec) -> dict[Slot, float]:
    """The operands of a sum with their factors; empty unless all are tensors, with factors that are known numbers."""
    weights = coefficients(node, spec)
    operands = slots(node, spec.args)
    return {slot: weights[slot.name] for slot in operands} if set(weights) == {slot.name for slot in operands} else {}


def replace(node: Node, slot: Slot, new: Node) -> None:
    """Put ``new`` into one slot of ``node``."""
    if slot.position is None:
        set_arg(node, slot.name, new)
        return
    values = list(bind(node)[slot.name])
    values[slot.position] = new
    set_arg(node, slot.name, values)


def value(node: Node) -> Any:
    """The node's captured (fake) value."""
    return node.meta.get("val")


def dtype(node: Any) -> torch.dtype | None:
    """Dtype of a node's captured value; None if ``node`` is no node, or its value no tensor."""
    val = value(node) if isinstance(node, Node) else None
    return val.dtype if isinstance(val, torch.Tensor) else None


def is_float(node: Node) -> bool:
    """Whether the node's value is, or contains, a floating-point or complex tensor."""
    val = value(node)
    values = val if isinstance(val, (tuple, list)) else (val,)
    return any(isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)


def is_complex(node: Node) -> bool:
    """Whether the node's value is a complex tensor."""
    val = value(node)
    return isinstance(val, torch.Tensor) and val.is_complex()


def is_integer(node: Node) -> bool:
    """Whether the node's value is, or contains, an integer (not boolean) tensor, and no floating one."""
    val = value(node)
    tensors = [v for v in (val if isinstance(val, (tuple, list)) else (val,)) if isinstance(v, torch.Tensor)]
    return bool(tensors) and all(
        not (v.is_floating_point() or v.is_complex() or v.dtype is torch.bool) for v in tensors
    )


def adds_a_number(node: Node, spec: OpSpec) -> bool:
    """Whether an affine operator adds a literal other than 0: in place of an operand, or as a fill value."""
    bound, names = bind(node), (*spec.args, *spec.extra.get("literals", ()))
    return any(isinstance(v := bound.get(name), (int, float)) and v != 0 for name in names)
