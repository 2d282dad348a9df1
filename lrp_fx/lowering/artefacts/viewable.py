"""Relevance graphs for viewers: nodes say where they come from, in operators that viewers know.

netron refuses a whole file for one operator that it does not know, and it knows few of PyTorch's backward operators.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.copies import copy_graph
from lrp_fx.lowering.origins import show_origins

aten = torch.ops.aten


def viewable(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph with the origins of its nodes, and with ``sgn`` and the backward of softmax spelled out."""
    graph, _ = copy_graph(graph_module.graph)
    for node in list(graph.nodes):
        if node.target is aten.sgn.default and not node.meta["val"].is_complex():
            node.target = aten.sign.default  # the same for real numbers
        elif node.target is aten._softmax_backward_data.default:
            _spell_softmax_backward(graph, node)
    show_origins(graph)
    graph.lint()
    return fx.GraphModule(graph_module, graph, class_name="RelevanceGraph")


def _spell_softmax_backward(graph: fx.Graph, node: Node) -> None:
    """y (g - sum(g y)), unless it changes the precision."""
    cotangent, output, dim = node.args[:3]
    assert isinstance(cotangent, Node)
    if cotangent.meta["val"].dtype != node.meta["val"].dtype:
        return
    meta = {key: value for key, value in node.meta.items() if key not in ("val", "tensor_meta")}
    with graph.inserting_before(node):
        product = graph.call_function(aten.mul.Tensor, (cotangent, output))
        total = graph.call_function(aten.sum.dim_IntList, (product, [dim], True))
        shares = graph.call_function(aten.mul.Tensor, (output, total))
        result = graph.call_function(aten.sub.Tensor, (product, shares))
    for new in (product, total, shares, result):
        new.meta = dict(meta)
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
