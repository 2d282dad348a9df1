"""Detached tensors as nodes of the graph: ``detach``, ``.data``, ``no_grad``, ``inference_mode``.

A value that was computed in a region without gradients is detached where it is read outside of the region, as if the
author had written ``detach``. Operators that return their very argument, such as a conversion to the precision that a
tensor has, compute nothing: the tensor keeps the gradient that it had. ``lrp_fx.analysis.detached`` decides whether a
``detach`` is honoured. Constants need none, so none stays behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lrp_fx.graph.dimensions import example_size
from lrp_fx.graph.module_calls import forget, note, noted, unnoted
from lrp_fx.graph.operands import is_float
from lrp_fx.operators.schema import is_composite, is_mutating, shares
from lrp_fx.operators.table import OpTable

aten = torch.ops.aten

_OFF = "lrp_without_gradients"  #: note on a node
_SWITCH: Any = torch._C._set_grad_enabled


class GradientModes(TorchFunctionMode):
    """Notes what a traced model computes without gradients.

    Nodes between a switch of the model (``no_grad``, ``set_grad_enabled``) and the switch back are noted in their
    metadata. The forward of an ``autograd.Function`` runs without gradients, too, but PyTorch has switched them off for
    it, not the model: its operators are differentiated. Switches are not recorded: a tracer takes one inside of such a
    forward for the start of a region that never ends, and export drops a region inside of one under autocast. Results
    under ``torch.inference_mode``, which no tracer records, are detached.
    """

    def __init__(self) -> None:
        super().__init__()
        self._region: tuple[fx.Graph, Node | None, bool] | None = None  # graph, node before, whether without gradients

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        if func is _SWITCH:
            return self._switch(bool(args[0]))
        result = func(*args, **(kwargs or {}))
        if not torch.is_inference_mode_enabled():
            return result
        operands = {id(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}

        def detached(leaf: Any) -> Any:
            new = isinstance(leaf, Tensor) and leaf.is_floating_point() and id(leaf) not in operands
            return leaf.detach() if new else leaf

        return pytree.tree_map(detached, result)

    def _switch(self, on: bool) -> None:
        """Switch gradients on or off. Every second switch ends what the one before it began."""
        changes = on != torch.is_grad_enabled()
        with torch._C.DisableTorchFunction():
            _SWITCH(on)
        mode = get_proxy_mode()
        if mode is None:
            return
        graph = mode.tracer.graph
        last = _last(graph)
        if last is not None and last.target is _SWITCH:  # export has recorded it
            graph.erase_node(last)
            last = _last(graph)
        if not changes:
            return
        if self._region is None:
            self._region = graph, last, not on
            return
        (begun, before, off), self._region = self._region, None
        if off and begun is graph:
            for node in itertools.takewhile(lambda n: before is None or n > before, reversed(graph.nodes)):
                note(node, _OFF, True)


def _last(graph: fx.Graph) -> Node | None:
    """The last node of a graph."""
    return next(iter(reversed(graph.nodes)), None)


def take_noted_off(graph: fx.Graph) -> set[Node]:
    """Nodes that were noted as computed without gradients (:class:`GradientModes`); the notes are removed.

    They hold for the graph as it was traced: later passes take over a write in place as a new tensor.
    """
    off = {node for node in graph.nodes if noted(node, _OFF)}
    for node in off:
        forget(node, _OFF)
    return off


def take_switched_off(graph: fx.Graph) -> set[Node]:
    """Nodes behind a recorded switch, which are removed: PyTorch's own functions switch out of :class:`GradientModes`'
    sight."""
    enabled, off = True, set()
    for node in list(graph.nodes):
        if node.target is _SWITCH:
            enabled = bool(node.args[0])
            graph.erase_node(node)
        elif not enabled and node.op == "call_function":
            off.add(node)
    return off


def detach_results(graph: fx.Graph, off: Set[Node]) -> None:
    """Put a ``detach`` behind every value that was computed without gradients and is read where gradients are enabled.

    Tensors written in place are left alone, because autograd keeps their history. So are tensors from outside of the
    region that an operator in it returned as they were.
    """
    signals = _signals(graph) if off else {}
    for node in off:
        readers = [user for user in node.users if user not in off]
        if not readers or not signals.get(node) or not is_float(node) or _is_list(node):
            continue
        if is_written(node) or _writes_outside(node, off) or _is_from_outside(node, off):
            continue
        with graph.inserting_after(node):
            detached = graph.call_function(aten.detach.default, (node,))
        detached.meta = unnoted(node.meta)
        node.replace_all_uses_with(detached, delete_user_cb=lambda user: user in readers)  # noqa: B023


def settle_detached(graph: fx.Graph) -> None:
    """Use one operator for all kinds of detach; an alias if its operand cannot have a gradient anyway."""
    signals: dict[Node, bool] | None = None
    for node in graph.nodes:
        if OpTable.shipped().form(node) != "detach":
            continue
        signals = _signals(graph) if signals is None else signals
        has_gradient = signals[node] and is_float(node)
        node.target = aten.detach.default if has_gradient else aten.alias.default
        node.args, node.kwargs = node.args[:1], {}


def see_through_written(graph: fx.Graph) -> None:
    """A ``detach`` through which a tensor is written (``x.data.clamp_()``) becomes an alias."""
    for node in graph.nodes:
        if OpTable.shipped().form(node) == "detach" and is_written(node):
            node.target = aten.alias.default


def is_written(node: Node) -> bool:
    """Whether an operator writes into a tensor, or into a view of it."""
    if any(is_mutating(user) and user.args[0] is node for user in node.users):
        return True
    return any(is_written(user) for user in node.users if _is_piece(user) or shares(user))


def _writes_outside(node: Node, off: Set[Node]) -> bool:
    """Whether a node writes into a tensor from before gradients were switched off."""
    written = False
    while node in off and (is_mutating(node) or _is_piece(node) or shares(node)) and node.all_input_nodes:
        written |= is_mutating(node)
        node = node.all_input_nodes[0]
    return written and node not in off


def _is_from_outside(node: Node, off: Set[Node]) -> bool:
    """Whether a node's value is, unchanged, a tensor that was computed before gradients were switched off."""
    while node in off and (operand := returned_operand(node)) is not None:
        node = operand
    return node not in off


def returned_operand(node: Node) -> Node | None:
    """The operand that an operator returns as it is, neither a copy nor a view; None where there is none.

    Examples are ``to`` with the precision that the tensor has, and dropout in evaluation mode. Only composite operators
    do this. They are tried on tensors without data, at the sizes of the example.
    """
    if not is_composite(node):
        return None
    value = node.meta.get("val")
    like = [n for n in node.all_input_nodes if _metadata(n.meta.get("val")) == _metadata(value) is not None]
    if not like:
        return None
    with FakeTensorMode(), torch.no_grad():
        values = {n: _without_data(n.meta.get("val")) for n in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)  # type: ignore[misc]
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return next((n for n in like if values[n] is result), None)


def _metadata(value: Any) -> tuple[Any, ...] | None:
    """Shape, precision and device of a tensor; None of anything else."""
    return ([str(n) for n in value.shape], value.dtype, value.device) if isinstance(value, Tensor) else None


def _without_data(value: Any) -> Any:
    """A value with the sizes of the example, its tensors without data."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            sizes, strides = ([example_size(n) for n in numbers] for numbers in (leaf.shape, leaf.stride()))
            return torch.empty_strided(sizes, strides, dtype=leaf.dtype, device=leaf.device)
        return example_size(leaf) if isinstance(leaf, torch.SymInt) else leaf

    return pytree.tree_map(one, value)


def _is_piece(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_list(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _signals(graph: fx.Graph) -> dict[Node, bool]:
    """Whether a node depends on a floating-point input, or on rows that an input picked from a floating-point table."""
    ops = OpTable.shipped()
    reached: dict[Node, bool] = {}
    signals: dict[Node, bool] = {}
    for node in graph.nodes:
        reached[node] = node.op == "placeholder" or any(reached[n] for n in node.all_input_nodes)
        if node.op == "placeholder":
            signals[node] = is_float(node)
            continue
        spec = ops.get(node) if node.op == "call_function" else None
        picks = spec is not None and "picks" in spec.extra and reached[node] and is_float(node)
        signals[node] = picks or any(signals[n] for n in node.all_input_nodes)
    return signals
