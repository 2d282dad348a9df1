"""A graph pass: if only one class is read of a layer's outputs, compute that class alone.

A linear layer as wide as the vocabulary precedes the selection of a class. The cotangent of its output is zero but for
one class, so its transposed product is one row of the weights. With many targets, such cotangents take as much memory
as all their logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lrp_fx.graph.writer import NodeWriter
from lrp_fx.operators.table import OpTable, bind
from lrp_fx.rules import functions as rules

aten = torch.ops.aten

#: rule functions with one operand that treat every entry alike
_ALIKE = rules.commuting_with(rules.ENTRIES)


def select_logits(graph: fx.Graph, ops: OpTable) -> int:
    """Move every selection of a class from the output of a linear layer to the rows of its weights.

    Other readers of the layer (a maximum of its outputs) stay as they are. Nodes need ``meta["val"]``.

    Returns:
        The number of selections that were moved.
    """
    _squeeze_first(graph)
    count = 0
    for choice in list(graph.nodes):
        picked = _picked(choice)
        if picked is None:
            continue
        values, position, index = picked
        between, layer = _layer_behind(values, ops)
        if layer is None:
            continue
        with graph.inserting_before(choice):
            result = _Rows(graph, choice).chosen(layer, position, index, between)
        choice.replace_all_uses_with(result)
        graph.erase_node(choice)
        count += 1
    graph.eliminate_dead_code()
    return count


def _squeeze_first(graph: fx.Graph) -> None:
    """Squeeze the dimension of one position in front of a layer, so that the selection of a class follows the layer."""
    for node in list(graph.find_nodes(op="call_function", target=aten.squeeze.dim)):
        layer, dim = node.args
        if layer.target is not aten.linear.default or len(layer.users) != 1:  # type: ignore[union-attr]
            continue
        rank = layer.meta["val"].dim()  # type: ignore[union-attr]
        if dim % rank == rank - 1:  # type: ignore[operator]
            continue
        bound = bind(layer)  # type: ignore[arg-type]
        with graph.inserting_before(layer):  # type: ignore[arg-type]
            writer = NodeWriter(graph, node)
            x = writer.call(aten.squeeze.dim, bound["input"], dim % rank)  # type: ignore[operator]
            new = writer.call(aten.linear.default, x, bound["weight"], bound.get("bias"))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(layer)  # type: ignore[arg-type]


def _picked(node: Node) -> tuple[Node, list[Node] | None, Node] | None:
    """(values, indices of their other dimensions or None for all, index of the class) of a selection of one class."""
    values = node.args[0] if node.args else None
    if not isinstance(values, Node) or not isinstance(values.meta.get("val"), Tensor):
        return None
    rank = values.meta["val"].dim()
    if node.target is aten.gather.default:
        _, dim, index = node.args[:3]
        single = dim % rank == rank - 1 and index.meta["val"].shape[-1] == 1  # type: ignore[operator, union-attr]
        same = [str(n) for n in index.meta["val"].shape[:-1]] == [str(n) for n in values.meta["val"].shape[:-1]]  # type: ignore[union-attr]
        return (values, None, index) if single and same else None  # type: ignore[return-value]
    if node.target is aten.index.Tensor:
        indices: Any = node.args[1]
        if len(indices) != rank or rank < 2 or not all(isinstance(i, Node) for i in indices):
            return None
        vals = [i.meta["val"] for i in indices]
        if any(v.is_floating_point() or v.dtype is torch.bool or v.dim() != 1 for v in vals):
            return None
        return values, list(indices[:-1]), indices[-1]
    return None


def _layer_behind(values: Node, ops: OpTable) -> tuple[list[Node], Node | None]:
    """(operators between the layer and ``values``, last first; the linear layer, or None)."""
    between: list[Node] = []
    while values.target in _ALIKE or (ops.form(values) in ("copy", "cast") and len(values.all_input_nodes) == 1):
        between.append(values)
        values = values.args[0]  # type: ignore[assignment]
    if values.target is not aten.linear.default or is_traceable_wrapper_subclass(bind(values)["weight"].meta["val"]):
        return between, None
    return between, values


class _Rows(NodeWriter):
    """Emits a linear layer at selected outputs."""

    def chosen(self, layer: Node, position: list[Node] | None, index: Node, between: list[Node]) -> Node:
        """x . W[index] + b[index], of the shape of the selection."""
        bound: dict[str, Any] = bind(layer)
        x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
        if position is not None:
            x = self.call(aten.index.Tensor, x, position)
        else:
            index = self.call(aten.squeeze.dim, index, -1)
        rows = self.call(aten.index.Tensor, weight, [index])
        product = self.call(aten.matmul.default, self._unsqueezed(x, -2), self._unsqueezed(rows, -1))
        result = self.call(aten.squeeze.dim, product, -1)
        if bias is not None:
            result = self.call(
                aten.add.Tensor, result, self._unsqueezed(self.call(aten.index.Tensor, bias, [index]), -1)
            )
        if position is not None:
            result = self.call(aten.squeeze.dim, result, -1)
        for node in reversed(between):
            result = self.call(node.target, result, *node.args[1:], **node.kwargs)
        return result

    def _unsqueezed(self, x: Node, dim: int) -> Node:
        return self.call(aten.unsqueeze.default, x, dim)
