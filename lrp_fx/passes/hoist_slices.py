"""A graph pass: move slices of positions in front of operators that treat positions alike.

A language model's head costs as much as several of its layers, and an explanation reads its output at one position. An
operator that treats positions alike (a linear layer, a normalization over features, an elementwise operator) commutes
with the selection of positions. The selection is moved in front of it, and further up, as long as all readers select
the same positions. The head, the last norm, the last feed-forward layer and the queries of the last attention are then
computed at one position. The selection is that of the target, or one of the model's own (class token, last position).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.dimensions import same_sizes
from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.operators.schema import has_tag
from lrp_fx.operators.table import OpSpec, OpTable, bind, set_arg
from lrp_fx.passes.narrow_queries import narrow_queries
from lrp_fx.rules import functions as rules

aten = torch.ops.aten

#: functions of this package that are elementwise
_ELEMENTWISE = rules.commuting_with(rules.POSITIONS)
_WHOLE = 2**63 - 1


def drop_whole_slices(graph: fx.Graph) -> None:
    """Remove slices over a whole dimension."""
    for node in list(graph.nodes):
        if node.target is not aten.slice.Tensor:
            continue
        bound = bind(node)
        start, end = bound.get("start"), bound.get("end")
        if start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**31)) and bound["step"] == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def sizes_from_inputs(graph: fx.Graph) -> None:
    """Read sizes from the inputs: a tensor that is read for its size alone need not be computed.

    Products of such sizes (samples times length) are computed once, at the front of the graph.
    """
    front = _Front(graph)
    for node in list(graph.nodes):
        size = node.meta.get("val")
        if node.target is aten.sym_size.int or (node.target is operator.mul and isinstance(size, torch.SymInt)):
            front_size = front.size(size)
            if front_size is not None:
                node.replace_all_uses_with(front_size)
    graph.eliminate_dead_code()


class _Front:
    """Nodes behind the inputs of a graph that read or compute sizes."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self.sizes: dict[str, Node] = {}

    def size(self, size: Any) -> Node | None:
        """A node with the value of this size (a number or a formula); None if the inputs do not determine it."""
        key = str(size)
        if key not in self.sizes:
            dims = ((n, axis, d) for n in self.inputs for axis, d in enumerate(getattr(n.meta.get("val"), "shape", ())))
            place = next((dimension for dimension in dims if str(dimension[2]) == key), None)
            if place is not None:
                self.sizes[key] = self._emit(aten.sym_size.int, place[:2], place[2])
            elif isinstance(size, torch.SymInt) and (product := self._product(size)) is not None:
                self.sizes[key] = product
        return self.sizes.get(key)

    def _product(self, size: torch.SymInt) -> Node | None:
        factors = sympy.Mul.make_args(size.node.expr)
        single = [int(f) if f.is_Integer else self.size(f) for f in factors]
        if len(factors) < 2 or any(f is None for f in single):
            return None
        result: Any = single[0]
        for factor in single[1:]:
            value = _value(result) * _value(factor)
            result = self._emit(operator.mul, (result, factor), value)
        return result

    def _emit(self, target: Any, args: tuple[Any, ...], value: Any) -> Node:
        with self.graph.inserting_after(
            max([*self.inputs, *self.sizes.values(), *(a for a in args if isinstance(a, Node))])
        ):
            node = self.graph.call_function(target, args)
        node.meta = {"val": value}
        return node


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, Node) else size


def behind_selection(graph: fx.Graph, ops: OpTable, reported: Iterable[Node] = ()) -> None:
    """Move every selection of positions as far up as possible.

    Nodes without ``meta["val"]`` are left as they are.

    Args:
        graph: the graph.
        ops: the op table.
        reported: nodes that the graph also returns, as constants: these are still computed in full, for the output.
    """
    reported = set(reported)
    _keep_dimensions(graph, ops)
    for node in reversed(list(graph.nodes)):
        depth = _leading(node)
        if depth is not None and node.users:
            _move_up(graph, ops, node, depth, reported)
    graph.eliminate_dead_code()


def may_move(graph: fx.Graph, ops: OpTable) -> bool:
    """Whether some operator that treats positions alike is only read at selected positions."""
    for node in graph.nodes:
        depth = _leading(node) or _selecting(node)
        if depth is not None and node.users:
            top: Any = node.args[0]
            if all(_alike(user, node) for user in top.users) and positional(top, depth, ops) is not None:
                return True
    return False


def _keep_dimensions(graph: fx.Graph, ops: OpTable) -> None:
    """Selections of one position -> slices of length one, which keep the dimension, and a squeeze."""
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        depth = _selecting(node)
        x, dim, at = node.args
        if depth is None or positional(x, depth, ops) is None:
            continue
        rank = x.meta["val"].dim()
        with graph.inserting_before(node):
            sliced = graph.call_function(aten.slice.Tensor, (x, dim % rank, at, at + 1 if at != -1 else _WHOLE))
            flat = graph.call_function(aten.squeeze.dim, (sliced, dim % rank))
        sliced.meta = dict(node.meta) | {"val": node.meta["val"].unsqueeze(dim % rank)}
        flat.meta = dict(node.meta)
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _selecting(node: Node) -> int | None:
    """Number of leading dimensions up to the one that selects one position; None for any other node."""
    if node.target is not aten.select.int:
        return None
    x, dim, at = node.args
    example = x.meta.get("val")  # type: ignore[union-attr]
    if not isinstance(example, Tensor) or not isinstance(dim, int) or not isinstance(at, int):
        return None
    return dim % example.dim() + 1 if 0 < dim % example.dim() < example.dim() - 1 else None


def _leading(node: Node) -> int | None:
    """Number of leading dimensions that a selection of positions indexes; None for any other node."""
    operand = node.args[0] if node.args else None
    if not isinstance(operand, Node) or not isinstance(operand.meta.get("val"), Tensor):
        return None
    rank = operand.meta["val"].dim()
    if node.target is aten.index.Tensor:
        indices = node.args[1]
        if not all(isinstance(i, Node) and not _boolean(i) for i in indices):  # type: ignore[union-attr]
            return None
        depth = len(indices)  # type: ignore[arg-type]
        if {i.meta["val"].dim() for i in indices} not in ({1}, {depth}):  # type: ignore[union-attr]
            return None
    elif node.target is aten.slice.Tensor and all(isinstance(a, int) for a in node.args[1:]):
        depth = node.args[1] % rank + 1  # type: ignore[operator]
    else:
        return None
    return depth if 1 < depth < rank else None


def _boolean(node: Node) -> bool:
    return node.meta["val"].dtype is torch.bool


def _move_up(graph: fx.Graph, ops: OpTable, choice: Node, depth: int, reported: set[Node]) -> None:
    top = choice.args[0]
    assert isinstance(top, Node)
    region: dict[Node, list[Slot]] = {}  # operator -> its operands with positions
    same = {u for u in top.users if _alike(u, choice)}
    pending = {top}
    while pending:
        node = max(pending)  # the last one: all its readers were visited
        pending.remove(node)
        others = node.users.keys() - region.keys() - (same if node is top else set())
        read_out = any(user.op == "output" for user in others)
        if any(user.op != "output" for user in others) or (read_out and node not in reported):
            continue
        operands = positional(node, depth, ops)
        if operands is not None:
            region[node] = operands
            pending |= {all_slots(node)[slot] for slot in operands}
    if not any(_over_features(node, ops) for node in region):
        return  # elementwise operators alone are not worth it
    chosen: dict[Node, Node] = {}
    with graph.inserting_before(next(n for n in graph.nodes if n in same)):
        for node in reversed(list(region)):
            chosen[node] = _at_positions(graph, ops, node, region[node], choice, depth, chosen)
    for twin in same:
        twin.replace_all_uses_with(chosen[top])
    if depth == 2 and choice.meta["val"].dim() == top.meta["val"].dim():
        edges = [selected for operand, selected in chosen.items() if operand not in region]
        graph.eliminate_dead_code()
        for edge in edges:
            narrow_queries(graph, ops, edge)


def _alike(a: Node, b: Node) -> bool:
    return a is b or (a.target is b.target and a.args == b.args and a.kwargs == b.kwargs)


def positional(node: Node, depth: int, ops: OpTable) -> list[Slot] | None:
    """The operands of ``node`` with positions, if it treats all positions alike; None otherwise.

    Args:
        node: the operator.
        depth: number of leading dimensions that index the positions.
        ops: the op table.
    """
    val = node.meta.get("val")
    if node.op != "call_function" or not isinstance(val, Tensor) or val.dim() <= depth:
        return None
    slots = all_slots(node)
    if any(operand.meta.get("val") is None for operand in slots.values()):
        return None
    if (operand := _over_features(node, ops)) is not None:
        features = len(bind(node).get("normalized_shape", (0,)))
        return [operand] if slots[operand].meta["val"].dim() - features >= depth else None
    if node.target is rules.normalization_rule:
        width = bind(node)["width"]
        return [Slot("y"), Slot("x")] if 0 < width <= val.dim() - depth else None
    if (dims := _reduced_dims(node, ops)) is not None:
        return [Slot(_declared(node, ops).args[0])] if min(dims) >= depth else None
    elementwise = node.target in _ELEMENTWISE or has_tag(node, torch.Tag.pointwise) or _keeps_places(node, ops)
    return _broadcast(slots, val, depth) if elementwise else None


def _declared(node: Node, ops: OpTable) -> OpSpec:
    return (ops.get(node) if node.op == "call_function" else None) or OpSpec("", "constant")


def _over_features(node: Node, ops: OpTable) -> Slot | None:
    """The input of a linear layer or of a normalization over the last dimensions; None for any other operator."""
    if node.target is aten.linear.default:
        return Slot("input")
    spec = _declared(node, ops)
    return Slot(spec.args[0]) if spec.extra.get("layout") == "layer" else None


def _keeps_places(node: Node, ops: OpTable) -> bool:
    """Whether entries are not moved, or the result does not depend on the values (``zeros_like``)."""
    spec = _declared(node, ops)
    return spec.extra.get("form") in ("copy", "cast", "detach") or (spec.kind == "constant" and spec.elementwise)


def _reduced_dims(node: Node, ops: OpTable) -> list[int] | None:
    """Dimensions of a softmax, or of a reduction with ``keepdim``; None for any other operator."""
    spec, bound = _declared(node, ops), bind(node)
    dim = bound.get(spec.extra.get("distribution", "dim"))
    if not ("distribution" in spec.extra or (spec.reduces and bound.get("keepdim"))):
        return None
    rank = all_slots(node)[Slot(spec.args[0])].meta["val"].dim()
    dims = [dim] if isinstance(dim, int) else dim
    return [d % rank for d in dims] if dims and all(isinstance(d, int) for d in dims) else None


def _broadcast(slots: Mapping[Slot, Node], val: Tensor, depth: int) -> list[Slot] | None:
    positional = []
    for slot, operand in slots.items():
        example = operand.meta.get("val")
        if isinstance(example, (tuple, list)):
            return None
        if not isinstance(example, Tensor):
            continue
        if example.dim() == val.dim() and same_sizes(example.shape[:depth], val.shape[:depth]):
            positional.append(slot)
        elif example.dim() > val.dim() - depth:
            return None
    return positional or None


def _at_positions(
    graph: fx.Graph,
    ops: OpTable,
    node: Node,
    positional: list[Slot],
    choice: Node,
    depth: int,
    chosen: dict[Node, Node],
) -> Node:
    """``node``, computed at the selected positions of its operands."""
    new = graph.node_copy(node)
    new.meta = dict(node.meta) | {"val": _chosen_value(node, choice, depth)}
    if (dims := _reduced_dims(node, ops)) is not None:
        rank = node.meta["val"].dim()
        behind = [d - rank for d in dims]
        name = _declared(node, ops).extra.get("distribution", "dim")
        set_arg(new, name, behind if isinstance(bind(node)[name], (list, tuple)) else behind[0])
    for slot in positional:
        operand = all_slots(node)[slot]
        if operand not in chosen:
            with graph.inserting_before(new):
                chosen[operand] = graph.call_function(choice.target, (operand, *choice.args[1:]))  # type: ignore[arg-type]
            chosen[operand].meta["val"] = _chosen_value(operand, choice, depth)
        replace(new, slot, chosen[operand])
    return new


def _chosen_value(node: Node, choice: Node, depth: int) -> Tensor:
    """An example of the value of ``node`` at the selected positions."""
    value, before, after = (n.meta["val"] for n in (node, choice.args[0], choice))  # type: ignore[union-attr]
    positions = after.shape[: after.dim() - (before.dim() - depth)]
    with value.fake_mode:
        return value.new_empty((*positions, *value.shape[depth:]))
