"""A graph pass: fused grouped-query attention reads keys and values once, not a copy for every head.

Models with grouped-query attention (arXiv:2305.13245) repeat keys and values when they are given a mask. The kernels of
causal and full attention do not need the copies. Values, cotangents and relevance are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.dimensions import same_sizes
from lrp_fx.graph.unfuse_attention import FUSED
from lrp_fx.graph.writer import NodeWriter
from lrp_fx.operators.table import OpTable, bind
from lrp_fx.rules.functions import scale_relevance

aten = torch.ops.aten


def share_heads(graph: fx.Graph, ops: OpTable) -> int:
    """Let every fused attention without a mask read keys and values unrepeated.

    With a mask they stay repeated: no kernel on accelerators supports both. So do keys and values with other readers.

    Returns:
        The number of attentions that were changed.
    """
    count = 0
    for node in graph.find_nodes(op="call_function", target=FUSED):
        bound = bind(node)
        if bound.get("attn_mask") is not None or bound.get("dropout_p") or bound.get("enable_gqa"):
            continue
        repeated = [_repeated(bound[name], ops) for name in ("key", "value")]
        if any(operand is None for operand in repeated):
            continue
        with graph.inserting_before(node):
            key, value = (_Single(graph, node).heads(*operand) for operand in repeated if operand is not None)
        keywords = {k: v for k, v in bound.items() if k in ("scale", "is_causal") and v}
        node.args, node.kwargs = (bound["query"], key, value), {**keywords, "enable_gqa": True}
        count += 1
    if count:
        graph.eliminate_dead_code()
    return count


def _repeated(node: Node, ops: OpTable) -> tuple[Node, list[float]] | None:
    """(the (B, H, 1, T, D) tensor that (B, H * n, T, D) keys repeat n times, factors of its relevance), or None."""
    factors: list[float] = []
    while node.target is scale_relevance and len(node.users) == 1:
        factors.append(node.args[1])  # type: ignore[arg-type]
        node = node.args[0]  # type: ignore[assignment]
    if ops.form(node) != "reshape" or node.meta["val"].dim() != 4 or len(node.users) != 1:
        return None
    shape = node.meta["val"].shape
    node = node.args[0]  # type: ignore[assignment]
    while ops.form(node) == "copy" and len(node.users) == 1:
        node = node.args[0]  # type: ignore[assignment]
    if node.target is not aten.expand.default or len(node.users) != 1:
        return None
    single: Any = node.args[0]
    before, after = single.meta["val"].shape, node.meta["val"].shape
    alike = same_sizes([*before[:2], *before[3:]], [*after[:2], *after[3:]])
    if len(before) != 5 or not alike or str(before[2]) != "1":
        return None
    return (single, factors) if same_sizes([after[0], after[1] * after[2], *after[3:]], shape) else None


class _Single(NodeWriter):
    """Emits keys or values without their copies."""

    def heads(self, single: Node, factors: list[float]) -> Node:
        """(B, H, 1, T, D) -> (B, H, T, D)."""
        node = self.call(aten.squeeze.dim, single, 2)
        for factor in factors:
            value = node.meta["val"]
            node = self.graph.call_function(scale_relevance, (node, factor))
            node.meta["val"] = value
        return node
