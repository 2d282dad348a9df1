"""One node for an expression that a model writes twice.

``(a - b) / (a - b).norm()`` has two differences, ``exp(x) / exp(x).sum()`` two exponentials, and ``layer(x) *
layer(x).sigmoid()`` two calls of a layer. Analysis tells by nodes whether two operands are one tensor, so both are one
node: a normalization, a softmax and a nonlinearity are then what they are with a name for the tensor.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.module_calls import CALLS
from lrp_fx.graph.reach import is_floating
from lrp_fx.graph.steps import STEP
from lrp_fx.operators.schema import has_tag, is_mutating
from lrp_fx.operators.table import OpTable


def merge_equal(graph_module: fx.GraphModule, ops: OpTable) -> None:
    """Let calls of the same operator with the same arguments be one node, where they compute on a signal.

    What is computed from sizes or positions alone stays where it is: layers that read each other's tables are no longer
    alike. Steps of a loop stay apart, as each is rewritten by itself.
    """
    graph, merged = graph_module.graph, False
    signals = _signals(graph, ops)
    first_calls: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr" and not (node in signals and _is_repeatable(node)):
            continue
        first = first_calls.setdefault((node.op, node.target, _key(node.args), _key(node.kwargs)), node)
        if first is not node:
            if calls := [*first.meta.get(CALLS, ()), *node.meta.get(CALLS, ())]:
                first.meta[CALLS] = calls
            node.replace_all_uses_with(first)
            graph.erase_node(node)
            merged = True
    if merged:
        graph.lint()
        graph_module.recompile()


def _signals(graph: fx.Graph, ops: OpTable) -> set[Node]:
    """Floating-point inputs, looked-up rows, and every floating-point node that depends on one."""
    signals: set[Node] = set()
    for node in graph.nodes:
        looks_up = node.op == "call_function" and (spec := ops.get(node)) is not None and spec.kind == "lookup"
        reached = node.op == "placeholder" or looks_up or any(n in signals for n in node.all_input_nodes)
        if reached and is_floating(node):
            signals.add(node)
    return signals


def _is_repeatable(node: Node) -> bool:
    """Whether a call gives the same result each time."""
    if node.op != "call_function" or STEP in node.meta:
        return False
    if node.target is operator.getitem:
        return True
    known = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    return known and not is_mutating(node) and not has_tag(node, torch.Tag.nondeterministic_seeded)


def _key(value: Any) -> Any:
    """An argument as a key; 1, 1.0 and True are different ones."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple((name, _key(v)) for name, v in value.items())
    if isinstance(value, slice):
        return slice, _key(value.start), _key(value.stop), _key(value.step)
    return type(value), value
