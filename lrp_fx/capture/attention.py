"""Fused attention written out as the products and the softmax it fuses, for what looks inside: scores and weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx import Node

from lrp_fx.capture.calls import CALLS
from lrp_fx.capture.captured import Captured, copy_graph

aten = torch.ops.aten

_FUSED = aten.scaled_dot_product_attention.default


def write_out_attention(captured: Captured) -> Captured:
    """A capture in which every fused attention is a chain of nodes; the captured graph itself is left as it is.

    Outputs agree up to rounding. Memory is quadratic in the length of the sequence, as that of the chain is.
    """
    graph, _ = copy_graph(captured.graph_module.graph)
    for node in [n for n in graph.nodes if n.target is _FUSED]:
        with graph.inserting_before(node):
            result = _Writer(graph, node).attention(*node.args, **node.kwargs)
        result.meta |= {k: v for k, v in node.meta.items() if k == CALLS}
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.lint()
    module = fx.GraphModule(captured.graph_module, graph, class_name="WrittenOut")
    return dataclasses.replace(captured, graph_module=module)


class NodeWriter:
    """Appends nodes in place of another one, each with the value that shape propagation needs."""

    def __init__(self, graph: fx.Graph, origin: Node) -> None:
        self.graph, self.origin = graph, origin

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of ``target``."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {k: v for k, v in self.origin.meta.items() if k in ("nn_module_stack", "stack_trace")}
        values, keywords = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with _fake(self.origin):
            node.meta["val"] = target(*values, **keywords)
        return node


class _Writer(NodeWriter):
    """Writes out one fused attention."""

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
            seen = self.call(aten.tril.default, self.call(aten.ones_like.default, scores, dtype=torch.bool))
            scores = self._masked(scores, seen)
        if attn_mask is not None:
            boolean = attn_mask.meta["val"].dtype is torch.bool
            scores = self._masked(scores, attn_mask) if boolean else self.call(aten.add.Tensor, scores, attn_mask)
        weights = self.call(aten._safe_softmax.default, scores, -1)
        return self.call(aten.matmul.default, weights, value)

    def _masked(self, scores: Node, seen: Node) -> Node:
        return self.call(aten.masked_fill.Scalar, scores, self.call(aten.logical_not.default, seen), -math.inf)

    def _repeated(self, node: Node, heads: int) -> Node:
        times = heads // node.meta["val"].shape[-3]
        return node if times == 1 else self.call(aten.repeat_interleave.self_int, node, times, -3)


@contextlib.contextmanager
def _fake(node: Node) -> Iterator[None]:
    """Shape propagation: under the fake mode of the capture, or without gradients for a recorded run."""
    mode = detect_fake_mode([v for v in (node.meta["val"],) if isinstance(v, Tensor)])
    with mode if mode is not None else torch.no_grad():
        yield
