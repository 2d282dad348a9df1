"""Attention that is read at some positions only is computed for their queries only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.dimensions import same_sizes
from lrp_fx.graph.unfuse_attention import FUSED
from lrp_fx.graph.writer import NodeWriter
from lrp_fx.operators.table import OpTable, bind

aten = torch.ops.aten


def narrow_queries(graph: fx.Graph, ops: OpTable, choice: Node) -> None:
    """Move a selection of positions from the output of a fused attention to its queries, if possible.

    Softmax and the product with the values treat all queries alike.

    Args:
        graph: the graph.
        ops: the op table.
        choice: a slice of dimension 1, or an index of dimensions 0 and 1 by (B, 1) and (B, n) positions, of (B, T,
            heads * width) features.
    """
    top = choice.args[0]
    fused = _attention_behind(top, ops) if isinstance(top, Node) else None
    if fused is None:
        return
    bound = bind(fused)
    if bound.get("dropout_p") or str(bound["query"].meta["val"].shape[2]) != str(top.meta["val"].shape[1]):  # type: ignore[union-attr]
        return
    with graph.inserting_before(choice):
        result = _Asking(graph, choice, fused).attention(bound)
    choice.replace_all_uses_with(result)
    dead: Any = choice
    while (
        not dead.users and dead.op == "call_function"
    ):  # attention may draw random numbers, so eliminate_dead_code keeps it
        before = dead.args[0]
        graph.erase_node(dead)
        if dead is fused:
            break
        dead = before


def _attention_behind(node: Node, ops: OpTable) -> Node | None:
    """The attention whose (B, H, T, D) output ``node`` is, as (B, T, H * D), if it has no other reader."""
    shape: tuple[Any, ...] = tuple(node.meta["val"].shape)
    transposed = False
    if len(shape) != 3:
        return None
    while node.target is not FUSED:
        if len(node.users) != 1:
            return None
        previous = node.args[0] if node.args else None
        if not isinstance(previous, Node) or not isinstance(previous.meta.get("val"), Tensor):
            return None
        before, after = previous.meta["val"], node.meta["val"]
        if node.target is aten.transpose.int and sorted(d % 4 for d in node.args[1:3] if before.dim() == 4) == [1, 2]:  # type: ignore[operator]
            transposed = not transposed
        elif ops.form(node) == "reshape":
            merges = not transposed and before.dim() == 4 and after.dim() == 3
            if not same_sizes(before.shape, after.shape) and not (merges and same_sizes(before.shape[:2], shape[:2])):
                return None
        elif ops.form(node) != "copy":
            return None
        node = previous
    return node if transposed and len(node.users) == 1 and node.meta["val"].dim() == 4 else None


class _Asking(NodeWriter):
    """Emits one fused attention at selected queries."""

    def __init__(self, graph: fx.Graph, choice: Node, origin: Node) -> None:
        super().__init__(graph, origin)
        self.choice = choice

    def chosen(self, x: Node) -> Node:
        """(B, H, T, ...) -> (B, H, n, ...)."""
        swapped = self.call(aten.transpose.int, x, 1, 2)
        return self.call(aten.transpose.int, self.call(self.choice.target, swapped, *self.choice.args[1:]), 1, 2)

    def attention(self, bound: dict[str, Any]) -> Node:
        query, key, value = bound["query"], bound["key"], bound["value"]
        keywords = {k: v for k, v in bound.items() if k in ("scale", "enable_gqa") and v}
        mask = self.mask(bound, query, key)
        out = self.call(FUSED, self.chosen(query), key, value, mask, **keywords)
        return self.call(aten.flatten.using_ints, self.call(aten.transpose.int, out, 1, 2), 2, -1)

    def mask(self, bound: dict[str, Any], query: Node, key: Node) -> Node | None:
        """The rows of the mask for the selected queries; a causal mask is written out."""
        mask: Node | None = bound.get("attn_mask")
        if mask is None and not bound.get("is_causal"):
            return None
        batch, length = (self.call(aten.sym_size.int, query, axis) for axis in (0, 2))
        device = query.meta["val"].device
        if mask is None:
            rows = self.call(aten.arange.default, length, device=device)
            columns = self.call(aten.arange.default, self.call(aten.sym_size.int, key, 2), device=device)
            mask = self.call(aten.le.Tensor, columns, self.call(aten.unsqueeze.default, rows, 1))
        rank = mask.meta["val"].dim()
        if rank == 4 and str(mask.meta["val"].shape[2]) == "1":
            return mask
        heads = mask.meta["val"].shape[1] if rank == 4 else 1
        if rank == 3:
            mask = self.call(aten.unsqueeze.default, mask, 1)
        return self.chosen(self.call(aten.expand.default, mask, [batch, heads, length, -1]))
