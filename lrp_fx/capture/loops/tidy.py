"""Reads and writes of single rows in one spelling each: ``select`` and ``select_scatter``."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.dimensions import same_sizes
from lrp_fx.operators.table import bind

aten = torch.ops.aten


def tidy(graph: fx.Graph) -> None:
    """Rewrite rows of ``unbind`` and slices of length one; drop what changes nothing.

    That is slices of a whole dimension and writes into them, casts to the same precision, expansions to the same shape.
    """
    for node in list(graph.nodes):
        if node.target is operator.getitem and node.args[0].target is aten.unbind.int:
            _from_unbind(graph, node)
        elif node.target is aten.slice.Tensor:
            _from_slice(graph, node)
        elif node.target is aten.slice_scatter.default:
            _from_scatter(node)
        elif node.target in (aten.expand_as.default, aten.type_as.default):
            _plain(graph, node)
    reads = graph.find_nodes(op="call_function", target=aten.select.int)
    indices: dict[tuple[Any, Any], set[Any]] = {}
    for node in reads:
        _count_from_the_front(node)
        indices.setdefault(node.args[:2], set()).add(node.args[2])
    for node in reads:
        if len(indices[node.args[:2]]) > 1:  # one row alone is a part of a result, not a step of a sequence
            _read_where_used(graph, node)
    graph.eliminate_dead_code()


def _size(node: Node, dim: int) -> int | None:
    size = node.meta["val"].shape[dim]
    return size if isinstance(size, int) else None


def _count_from_the_front(node: Node) -> None:
    x, dim, index = node.args
    dim %= x.meta["val"].dim()  # type: ignore[union-attr, operator]
    size = _size(x, dim)  # type: ignore[arg-type]
    node.args = (x, dim, index + size if isinstance(index, int) and index < 0 and size is not None else index)  # type: ignore[operator]


def _read_where_used(graph: fx.Graph, node: Node) -> None:
    """Read the row in front of every user: one step may otherwise read what another one, or none, has read before."""
    for user in list(node.users):
        if user.op == "call_function":
            with graph.inserting_before(user):
                row = graph.node_copy(node)
            user.replace_input_with(node, row)


def _from_unbind(graph: fx.Graph, node: Node) -> None:
    pieces, index = node.args
    with graph.inserting_before(min(node.users, default=node)):
        row = graph.call_function(aten.select.int, (pieces.args[0], bind(pieces).get("dim", 0), index))  # type: ignore[union-attr, arg-type]
    row.meta = dict(node.meta)
    node.replace_all_uses_with(row)


def _from_slice(graph: fx.Graph, node: Node) -> None:
    bound = bind(node)
    x, dim, start, end = bound["self"], bound["dim"], bound["start"] or 0, bound["end"]
    if start == 0 and bound["step"] == 1 and same_sizes(x.meta["val"].shape, node.meta["val"].shape):
        node.replace_all_uses_with(x)
        return
    size = _size(x, dim)
    if not isinstance(start, int) or not isinstance(end, int) or size is None or bound["step"] != 1 or size == 1:
        return
    start, end = (max(0, i + size) if i < 0 else min(i, size) for i in (start, end))
    if end - start != 1:
        return
    with graph.inserting_before(node):
        row = graph.call_function(aten.select.int, (x, dim, start))
        row.meta = {**node.meta, "val": node.meta["val"].select(dim, 0)}
        slice_ = graph.call_function(aten.unsqueeze.default, (row, dim % node.meta["val"].dim()))
    slice_.meta = dict(node.meta)
    node.replace_all_uses_with(slice_)


def _from_scatter(node: Node) -> None:
    bound = bind(node)
    x, source = bound["self"], bound["src"]
    if bound["start"] in (0, None) and bound["step"] == 1 and same_sizes(x.meta["val"].shape, source.meta["val"].shape):
        node.replace_all_uses_with(source)


def _plain(graph: fx.Graph, node: Node) -> None:
    operand, like = node.args
    value, other = operand.meta["val"], like.meta["val"]  # type: ignore[union-attr]
    if node.target is aten.expand_as.default:
        if same_sizes(value.shape, other.shape):
            node.replace_all_uses_with(operand)  # type: ignore[arg-type]
    elif value.dtype is other.dtype:
        node.replace_all_uses_with(operand)  # type: ignore[arg-type]
    else:
        node.target, node.args = aten.to.dtype, (operand, other.dtype)
