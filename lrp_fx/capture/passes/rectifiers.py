"""A signal that is 0 wherever it is negative is written as ``relu``, however its author spelled it.

``relu`` may be a gate. ``where(x > 0, x, 0)``, ``maximum(x, 0)``, ``x.masked_fill(x < 0, 0)``, ``x * (x > 0)`` are the
same function of finite numbers. At 0, where relevance is 0, autograd takes half of the slope in ``maximum``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.module_calls import hand_on
from lrp_fx.operators.table import bind

aten = torch.ops.aten
_ABOVE = {aten.gt.Scalar, aten.ge.Scalar, aten.gt.Tensor, aten.ge.Tensor}
_BELOW = {aten.lt.Scalar, aten.le.Scalar, aten.lt.Tensor, aten.le.Tensor}
_CASTS = {aten.to, aten._to_copy, aten.type_as}
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
#: operators that fill a tensor with one value -> the name of that value
_FILLED = {aten.full.default: "fill_value", aten.full_like.default: "fill_value", aten.new_full.default: "fill_value"}
_FILLED |= {aten.scalar_tensor.default: "s"}


def rectifiers_to_relu(graph_module: fx.GraphModule) -> None:
    """Replace every spelling of a rectifier by ``relu``."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        signal = _SPELLINGS[node.target](graph_module, bind(node)) if node.target in _SPELLINGS else None
        if signal is None or not _is_alike(node, signal):
            continue
        with graph.inserting_before(node):
            relu = graph.call_function(aten.relu.default, (signal,))
        relu.meta = dict(node.meta)
        hand_on(node, relu)
        node.replace_all_uses_with(relu)
        graph.erase_node(node)


def _is_alike(node: Node, signal: Node) -> bool:
    """Whether a result has the form of the signal: nothing broadcasts it or converts it."""
    result, value = node.meta.get("val"), signal.meta.get("val")
    if not isinstance(result, Tensor) or not isinstance(value, Tensor) or not result.is_floating_point():
        return False
    return result.shape == value.shape and result.dtype is value.dtype


def _where(owner: fx.GraphModule, bound: dict[str, Any]) -> Node | None:
    """The signal of ``where(x > 0, x, 0)`` or ``where(x < 0, 0, x)``."""
    condition, yes, no = bound["condition"], bound["self"], bound["other"]
    if _compares(owner, condition, yes, _ABOVE) and _is_zero(owner, no):
        return yes  # type: ignore[no-any-return]
    return no if _compares(owner, condition, no, _BELOW) and _is_zero(owner, yes) else None


def _masked_fill(owner: fx.GraphModule, bound: dict[str, Any]) -> Node | None:
    """The signal of ``x.masked_fill(x < 0, 0)``."""
    signal = bound["self"]
    return signal if _compares(owner, bound["mask"], signal, _BELOW) and _is_zero(owner, bound["value"]) else None


def _maximum(owner: fx.GraphModule, bound: dict[str, Any]) -> Node | None:
    """The signal of ``maximum(x, 0)``."""
    one, other = bound["self"], bound["other"]
    return one if _is_zero(owner, other) else other if _is_zero(owner, one) else None


def _product(owner: fx.GraphModule, bound: dict[str, Any]) -> Node | None:
    """The signal of ``x * (x > 0)``."""
    one, other = bound["self"], bound["other"]
    if _compares(owner, _uncast(other), one, _ABOVE):
        return one  # type: ignore[no-any-return]
    return other if _compares(owner, _uncast(one), other, _ABOVE) else None


def _uncast(value: Any) -> Any:
    """What a cast converts to numbers."""
    cast = isinstance(value, Node) and getattr(value.target, "overloadpacket", None) in _CASTS
    return value.args[0] if cast else value


def _compares(owner: fx.GraphModule, condition: Any, signal: Any, comparisons: set[Any]) -> bool:
    """Whether a condition compares the signal itself with 0."""
    if not isinstance(condition, Node) or not isinstance(signal, Node) or condition.target not in comparisons:
        return False
    compared, bound = condition.args[:2]
    return compared is signal and _is_zero(owner, bound)


def _is_zero(owner: fx.GraphModule, value: Any) -> bool:
    """Whether a value is the number 0, or a constant of zeros."""
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value == 0
    while value.target is aten.alias.default:
        value = value.args[0]  # type: ignore[assignment]
    if value.op == "get_attr":
        constant = attribute(owner, value)
        return isinstance(constant, Tensor) and constant.numel() == 1 and _holds_zero(constant)
    return value.target in _ZEROS or (value.target in _FILLED and bind(value)[_FILLED[value.target]] == 0)


def _holds_zero(constant: Tensor) -> bool:
    plain = type(constant) is Tensor and not constant.is_meta  # a parameter or buffer may change
    return plain and not constant.requires_grad and bool(constant == 0)


_SPELLINGS: dict[Any, Callable[[fx.GraphModule, dict[str, Any]], Node | None]] = {
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.maximum.default: _maximum,
    aten.mul.Tensor: _product,
}
