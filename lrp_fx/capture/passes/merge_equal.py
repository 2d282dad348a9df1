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
from lrp_fx.graph.steps import STEP
from lrp_fx.operators.schema import has_tag, is_mutating


def merge_equal(graph_module: fx.GraphModule) -> None:
    """Let calls of the same operator with the same arguments be one node, where they depend on an input.

    Steps of a loop stay apart, as each is rewritten by itself.
    """
    graph, merged = graph_module.graph, False
    reached: set[Node] = set()
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
        if node.op != "get_attr" and not (node in reached and _is_repeatable(node)):
            continue
        first = known.setdefault((node.op, node.target, _key(node.args), _key(node.kwargs)), node)
        if first is not node:
            if calls := [*first.meta.get(CALLS, ()), *node.meta.get(CALLS, ())]:
                first.meta[CALLS] = calls
            node.replace_all_uses_with(first)
            graph.erase_node(node)
            merged = True
    if merged:
        graph.lint()
        graph_module.recompile()


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
