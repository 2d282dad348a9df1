"""Graph passes for export: operators of other libraries are replaced by PyTorch's own.

A grouped product (rows times the matrix of their group, as in mixtures of experts) becomes ``aten._grouped_mm`` in
bfloat16; in other precisions, and for ONNX, it becomes a sum over groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx import Node

aten = torch.ops.aten

_GROUPED = "transformers::grouped_mm_fallback"
_NATIVE = torch.bfloat16  # the only precision of aten._grouped_mm's fake kernel


def spell_grouped_products(graph: fx.Graph, plain: bool) -> None:
    """Replace grouped products of a library; with ``plain`` those of PyTorch, too."""
    for node in list(graph.nodes):
        if _name(node) == _GROUPED or (plain and node.target is aten._grouped_mm.default):
            x, weight, groups = node.args[:3]
            with graph.inserting_before(node):
                new = _grouped(graph, x, weight, groups, node.meta, plain)
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _name(node: Node) -> str:
    return node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""


def _grouped(graph: fx.Graph, x: Any, weight: Any, groups: Any, meta: dict[str, Any], plain: bool) -> Node:
    """Rows of x (T, K), sorted by group, times the (K, N) matrix of their group; ``groups`` are the end offsets."""
    if not plain and meta["val"].dtype is _NATIVE:
        new = graph.call_function(aten._grouped_mm.default, (x, weight, groups))
        new.meta = dict(meta)
        return new

    def call(target: Any, *args: Any) -> Node:
        node = graph.call_function(target, args)
        node.meta = {k: v for k, v in meta.items() if k != "val"}
        return node

    rows = call(aten.arange.default, call(aten.sym_size.int, x, 0))
    group = call(aten.sum.dim_IntList, call(aten.ge.Tensor, call(aten.unsqueeze.default, rows, 1), groups), [1])
    total: Node | None = None
    for index in range(int(weight.meta["val"].shape[0])):
        mine = call(aten.unsqueeze.default, call(aten.eq.Scalar, group, index), 1)
        product = call(aten.mm.default, call(aten.mul.Tensor, x, mine), call(aten.select.int, weight, 0, index))
        total = product if total is None else call(aten.add.Tensor, total, product)
    assert total is not None
    total.meta = dict(meta)
    return total
