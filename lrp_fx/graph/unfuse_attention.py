"""Fused attention decomposed into two products and a softmax, so that scores and attention weights are nodes."""

from __future__ import annotations

import math

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.module_calls import CALLS
from lrp_fx.graph.writer import NodeWriter

aten = torch.ops.aten

FUSED = aten.scaled_dot_product_attention.default


def write_out_attention(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph in which every fused attention is decomposed.

    Outputs agree up to rounding. Memory is quadratic in the sequence length.
    """
    graph, _ = copy_graph(graph_module.graph)
    for node in [n for n in graph.nodes if n.target is FUSED]:
        with graph.inserting_before(node):
            result = _Writer(graph, node).attention(*node.args, **node.kwargs)
        result.meta |= {k: v for k, v in node.meta.items() if k == CALLS}
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(graph_module, graph, class_name="WrittenOut")


class _Writer(NodeWriter):
    """Emits the nodes of one attention."""

    def attention(
        self,
        query: Node,
        key: Node,
        value: Node,
        attn_mask: Node | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Node:
        """softmax(scale Q K^T + mask) V, as torch documents the fused operator."""
        heads, width = query.meta["val"].shape[-3], query.meta["val"].shape[-1]
        if enable_gqa:
            key, value = (self._repeated(n, heads) for n in (key, value))
        scores = self.call(aten.matmul.default, query, self.call(aten.transpose.int, key, -2, -1))
        scores = self.call(aten.mul.Tensor, scores, 1 / math.sqrt(width) if scale is None else scale)
        if is_causal:
            visible = self.call(aten.tril.default, self.call(aten.ones_like.default, scores, dtype=torch.bool))
            scores = self._masked(scores, visible)
        if attn_mask is not None:
            boolean = attn_mask.meta["val"].dtype is torch.bool
            scores = self._masked(scores, attn_mask) if boolean else self.call(aten.add.Tensor, scores, attn_mask)
        weights = self.call(aten._safe_softmax.default, scores, -1)
        return self.call(aten.matmul.default, weights, value)

    def _masked(self, scores: Node, visible: Node) -> Node:
        return self.call(aten.masked_fill.Scalar, scores, self.call(aten.logical_not.default, visible), -math.inf)

    def _repeated(self, node: Node, heads: int) -> Node:
        times = heads // node.meta["val"].shape[-3]
        return node if times == 1 else self.call(aten.repeat_interleave.self_int, node, times, -3)
