"""Fused normalizations whose weight or bias is computed from an input (conditional, adaptive, FiLM-like ones).

The rule of a fused normalization treats its weight as a constant. A weight that carries relevance is a factor like any
other, and a bias that does is an added term, so both become operators of their own behind the normalization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.module_calls import hand_on, unnoted
from lrp_fx.graph.reach import from_inputs
from lrp_fx.graph.writer import NodeWriter
from lrp_fx.operators.table import OpTable, bind, set_arg

aten = torch.ops.aten


def free_of_inputs(graph: fx.Graph) -> None:
    """Move weights and biases that depend on an input out of fused normalizations; outputs agree up to rounding."""
    fused = [n for n in graph.nodes if _by_channel(n) is not None and any(_computed(p) for p in _affine(n).values())]
    if not fused:
        return
    reached = from_inputs(graph)
    for node in fused:
        if any(part in reached for part in _affine(node).values()):
            _take_out(graph, node)
    graph.eliminate_dead_code()


def _by_channel(node: Node) -> bool | None:
    """Whether the weight of a fused normalization is per channel (dimension 1); None for other nodes."""
    spec = OpTable.shipped().get(node) if node.op == "call_function" else None
    if spec is None or not (spec.kind == "normalization" or spec.extra.get("folds")):
        return None
    return spec.extra.get("layout") != "layer"


def _affine(node: Node) -> dict[str, Any]:
    bound = bind(node)
    return {name: bound[name] for name in ("weight", "bias") if bound.get(name) is not None}


def _computed(part: Any) -> bool:
    return isinstance(part, Node) and part.op != "get_attr"


def _take_out(graph: fx.Graph, node: Node) -> None:
    affine, dtype, rank = _affine(node), node.meta["val"].dtype, node.meta["val"].dim()
    with graph.inserting_after(node):
        bare = graph.node_copy(node)
    bare.meta = unnoted(node.meta)
    for name in affine:
        set_arg(bare, name, None)
    result, write = bare, NodeWriter(graph, node)
    with graph.inserting_after(bare):
        anchor = graph.call_function(aten.alias.default, (bare,))
    with graph.inserting_before(anchor):
        for name, operator in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
            if name not in affine:
                continue
            part = affine[name]
            if _by_channel(node):
                part = write.call(aten.reshape.default, part, [-1] + [1] * (rank - 2))
            result = write.call(operator, result, part)
        if result.meta["val"].dtype is not dtype:  # the weight has a higher precision
            result = write.call(aten.to.dtype, result, dtype)
    hand_on(node, result)
    node.replace_all_uses_with(result)
    graph.erase_node(anchor)
    graph.erase_node(node)
