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

from lrp_fx.graph.dimensions import same_sizes
from lrp_fx.graph.writer import NodeWriter
from lrp_fx.operators.table import OpTable, bind
from lrp_fx.rules import functions as rules

aten = torch.ops.aten

#: rule functions that treat every entry alike
_ALIKE = rules.commuting_with(rules.ENTRIES)


def select_logits(graph: fx.Graph, ops: OpTable) -> int:
    """Move every selection of a class from the output of a linear layer to the rows of its weights.

    Other readers of the layer (a maximum of its outputs) stay as they are. Nodes need ``meta["val"]``.

    Returns:
        The number of selections that were moved.
    """
    _squeeze_first(graph, ops)
    count = 0
    for choice in list(graph.nodes):
        picked = _picked(choice)
        if picked is None:
            continue
        values, position, index = picked
        if not _behind_layers(values, ops):
            continue
        with graph.inserting_before(choice):
            result = _Rows(graph, choice, ops, position, index).of(values)
        choice.replace_all_uses_with(result)
        graph.erase_node(choice)
        count += 1
    graph.eliminate_dead_code()
    return count


def _squeeze_first(graph: fx.Graph, ops: OpTable) -> None:
    """Squeeze the dimension of one position in front of layers, so that the selection of a class follows them."""
    for node in list(graph.find_nodes(op="call_function", target=aten.squeeze.dim)):
        values, dim = node.args
        rank = values.meta["val"].dim()  # type: ignore[union-attr]
        if dim % rank == rank - 1:  # type: ignore[operator]
            continue
        inside = _behind_layers(values, ops)  # type: ignore[arg-type]
        if not inside or any(user not in inside and user is not node for n in inside for user in n.users):
            continue
        with graph.inserting_before(node):
            new = _Squeezed(graph, node, dim % rank).of(values)  # type: ignore[arg-type, operator]
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.eliminate_dead_code()


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


def _behind_layers(values: Node, ops: OpTable) -> set[Node]:
    """The node, the linear layers of which it is a function of each entry, and the nodes in between; else empty."""
    if values.target is aten.linear.default:
        return set() if is_traceable_wrapper_subclass(bind(values)["weight"].meta["val"]) else {values}
    inside = {values}
    for operand in _entrywise(values, ops):
        if not (further := _behind_layers(operand, ops)):
            return set()
        inside |= further
    return inside if len(inside) > 1 else set()


def _entrywise(node: Node, ops: OpTable) -> list[Node]:
    """The operands of a node that treats every entry alike; [] for other nodes."""
    spec = ops.get(node) if node.op == "call_function" else None
    sums = spec is not None and spec.kind == "linear" and spec.elementwise
    copies = ops.form(node) in ("copy", "cast", "detach") and len(node.all_input_nodes) == 1
    operands = node.all_input_nodes if node.target in _ALIKE or sums or copies else []
    return operands if all(_same_shape(operand, node) for operand in operands) else []


def _same_shape(one: Node, other: Node) -> bool:
    values = (one.meta.get("val"), other.meta.get("val"))
    return all(isinstance(v, Tensor) for v in values) and same_sizes(*(v.shape for v in values))  # type: ignore[union-attr]


class _Behind(NodeWriter):
    """Emits a function of the entries of linear layers, with replacements for these layers."""

    def __init__(self, graph: fx.Graph, origin: Node) -> None:
        super().__init__(graph, origin)
        self.results: dict[Node, Node] = {}

    def of(self, values: Node) -> Node:
        """The replacement of ``values``."""
        if values not in self.results:
            if values.target is aten.linear.default:
                self.results[values] = self.layer(values)
            else:
                args, kwargs = fx.map_arg((values.args, dict(values.kwargs)), self.of)  # type: ignore[misc]
                self.results[values] = self.call(values.target, *args, **kwargs)
        return self.results[values]

    def layer(self, layer: Node) -> Node:
        """The replacement of a linear layer."""
        raise NotImplementedError


class _Squeezed(_Behind):
    """Linear layers at the one position of a dimension, without that dimension."""

    def __init__(self, graph: fx.Graph, origin: Node, dim: int) -> None:
        super().__init__(graph, origin)
        self.dim = dim

    def layer(self, layer: Node) -> Node:
        """The layer on its squeezed input."""
        bound = bind(layer)
        x = self.call(aten.squeeze.dim, bound["input"], self.dim)
        return self.call(aten.linear.default, x, bound["weight"], bound.get("bias"))


class _Rows(_Behind):
    """Linear layers at selected outputs.

    Attributes:
        position: indices of the dimensions in front of the classes; None for all.
        index: index of the class.
    """

    def __init__(self, graph: fx.Graph, origin: Node, ops: OpTable, position: list[Node] | None, index: Node) -> None:
        super().__init__(graph, origin)
        self.ops, self.position = ops, position
        self.index = index if position is not None else self.call(aten.squeeze.dim, index, -1)

    def layer(self, layer: Node) -> Node:
        """x . W[index] + b[index], of the shape of the selection."""
        bound: dict[str, Any] = bind(layer)
        x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
        if self.position is not None:
            x = self.call(aten.index.Tensor, x, self.position)
        rows = self._rows_of(weight)
        product = self.call(aten.matmul.default, self._unsqueezed(x, -2), self._unsqueezed(rows, -1))
        result = self.call(aten.squeeze.dim, product, -1)
        if bias is not None:
            result = self.call(aten.add.Tensor, result, self._unsqueezed(self._rows_of(bias), -1))
        return result if self.position is None else self.call(aten.squeeze.dim, result, -1)

    def _rows_of(self, weight: Node) -> Node:
        """The selected rows of weights; elementwise functions of weights are computed for these rows alone."""
        spec = self.ops.get(weight) if weight.op == "call_function" else None
        if spec is not None and spec.elementwise and weight.all_input_nodes == [weight.args[0]]:
            rows = self._rows_of(weight.all_input_nodes[0])
            return self.call(weight.target, rows, *weight.args[1:], **weight.kwargs)
        return self.call(aten.index.Tensor, weight, [self.index])

    def _unsqueezed(self, x: Node, dim: int) -> Node:
        return self.call(aten.unsqueeze.default, x, dim)
