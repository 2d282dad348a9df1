"""A graph pass: what is only read at selected positions is computed at these positions only.

A language model's head is as large as several of its layers, and of its output an explanation reads one position. An
operator that treats positions alike (a linear layer, a normalization over features, anything elementwise) commutes with
the choice of positions, so the choice is moved in front of it, and on, as far as every reader wants the same positions:
the head, the last norm, the last feed-forward layer and the queries of the last attention then run at one position
instead of all. A choice may be the target's, or one that the model makes: its class token, its last position.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.operators.table import bind, set_arg
from lrp_fx.passes.narrow_queries import ask_chosen
from lrp_fx.rules import functions as ops

aten = torch.ops.aten

_ELEMENTWISE: set[Any] = {
    *ops.commuting_with(ops.POSITIONS), exact_value, ops.nonzero, aten.detach.default, aten.alias.default,
    aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    # as slopes are written (lrp_fx.rules.slopes)
    torch.abs, torch.erf, torch.exp, torch.sigmoid, torch.tanh, torch.where, torch.nn.functional.softplus,
    torch.nn.functional.hardsigmoid, operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
    operator.pow, operator.eq, operator.ge, operator.gt, operator.le, operator.lt, "clamp",
}  # fmt: skip
_OVER_FEATURES = {aten.linear.default: "input", aten.layer_norm.default: "input", aten.rms_norm.default: "input"}
_REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.var.correction, aten.amax.default, aten.amin.default}
_WHOLE = 2**63 - 1
_SOFTMAX = {aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default}


def drop_whole_slices(graph: fx.Graph) -> None:
    """Remove slices that keep everything."""
    for node in list(graph.nodes):
        if node.target is not aten.slice.Tensor:
            continue
        bound = bind(node)
        start, end = bound.get("start"), bound.get("end")
        if start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**31)) and bound["step"] == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def sizes_from_inputs(graph: fx.Graph) -> None:
    """Read sizes from the inputs that have them: a tensor that is read for its size alone need not be computed.

    Products of such sizes (samples times length) are computed once, in front: no layer hands one on to another.
    """
    front = _Front(graph)
    for node in list(graph.nodes):
        size = node.meta.get("val")
        if node.target is aten.sym_size.int or (node.target is operator.mul and isinstance(size, torch.SymInt)):
            held = front.size(size)
            if held is not None:
                node.replace_all_uses_with(held)
    graph.eliminate_dead_code()


class _Front:
    """Sizes that are read, or computed, behind the inputs of a graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self.known: dict[str, Node] = {}

    def size(self, size: Any) -> Node | None:
        """A node that has this size (a number or a formula); None where no input tells it."""
        key = str(size)
        if key not in self.known:
            dims = ((n, axis, d) for n in self.inputs for axis, d in enumerate(getattr(n.meta.get("val"), "shape", ())))
            place = next((found for found in dims if str(found[2]) == key), None)
            if place is not None:
                self.known[key] = self._emit(aten.sym_size.int, place[:2], place[2])
            elif isinstance(size, torch.SymInt) and (product := self._product(size)) is not None:
                self.known[key] = product
        return self.known.get(key)

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
            max([*self.inputs, *self.known.values(), *(a for a in args if isinstance(a, Node))])
        ):
            node = self.graph.call_function(target, args)
        node.meta = {"val": value}
        return node


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, Node) else size


def behind_selection(graph: fx.Graph, reported: Iterable[Node] = ()) -> None:
    """Move every choice of positions as far up as it goes.

    Nodes without ``meta["val"]`` are left as they are.

    Args:
        reported: nodes of which the output reads the value only, as a constant: they are still computed in full for it.
    """
    reported = set(reported)
    _keep_dimensions(graph)
    for node in reversed(list(graph.nodes)):
        depth = _leading(node)
        if depth is not None and node.users:
            _move_up(graph, node, depth, reported)
    graph.eliminate_dead_code()


def may_move(graph: fx.Graph) -> bool:
    """Whether a choice of positions is all that is read of an operator that treats positions alike."""
    for node in graph.nodes:
        depth = _leading(node) or _selecting(node)
        if depth is not None and node.users:
            top: Any = node.args[0]
            if all(_alike(user, node) for user in top.users) and positional(top, depth) is not None:
                return True
    return False


def _keep_dimensions(graph: fx.Graph) -> None:
    """Selections of one position -> slices of length one, which keep the dimension, and take it away afterwards."""
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        depth = _selecting(node)
        x, dim, at = node.args
        if depth is None or positional(x, depth) is None:
            continue
        rank = x.meta["val"].dim()
        with graph.inserting_before(node):
            kept = graph.call_function(aten.slice.Tensor, (x, dim % rank, at, at + 1 if at != -1 else _WHOLE))
            flat = graph.call_function(aten.squeeze.dim, (kept, dim % rank))
        kept.meta = dict(node.meta) | {"val": node.meta["val"].unsqueeze(dim % rank)}
        flat.meta = dict(node.meta)
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _selecting(node: Node) -> int | None:
    """How many leading dimensions the selection of one position looks at; None for any other node."""
    if node.target is not aten.select.int:
        return None
    x, dim, at = node.args
    held = x.meta.get("val")  # type: ignore[union-attr]
    if not isinstance(held, Tensor) or not isinstance(dim, int) or not isinstance(at, int):
        return None
    return dim % held.dim() + 1 if 0 < dim % held.dim() < held.dim() - 1 else None


def _leading(node: Node) -> int | None:
    """How many leading dimensions a choice of positions looks at; None for any other node."""
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


def _move_up(graph: fx.Graph, choice: Node, depth: int, reported: set[Node]) -> None:
    top = choice.args[0]
    assert isinstance(top, Node)
    region: dict[Node, list[Slot]] = {}  # operator -> its operands that have positions
    same = {u for u in top.users if _alike(u, choice)}
    pending = {top}
    while pending:
        node = max(pending)  # the last one: whoever reads it has been looked at
        pending.remove(node)
        others = node.users.keys() - region.keys() - (same if node is top else set())
        read_out = any(user.op == "output" for user in others)
        if any(user.op != "output" for user in others) or (read_out and node not in reported):
            continue
        operands = positional(node, depth)
        if operands is not None:
            region[node] = operands
            pending |= {all_slots(node)[slot] for slot in operands}
    if not any(node.target in _OVER_FEATURES for node in region):
        return  # elementwise operators alone are not worth it
    chosen: dict[Node, Node] = {}
    with graph.inserting_before(next(n for n in graph.nodes if n in same)):
        for node in reversed(list(region)):
            chosen[node] = _at_positions(graph, node, region[node], choice, chosen)
    for twin in same:
        twin.replace_all_uses_with(chosen[top])
    if depth == 2 and choice.meta["val"].dim() == top.meta["val"].dim():
        edges = [made for operand, made in chosen.items() if operand not in region]
        graph.eliminate_dead_code()
        for edge in edges:
            ask_chosen(graph, edge)


def _alike(a: Node, b: Node) -> bool:
    return a is b or (a.target is b.target and a.args == b.args and a.kwargs == b.kwargs)


def positional(node: Node, depth: int) -> list[Slot] | None:
    """The operands of ``node`` that have its positions, where it treats positions alike; None where it does not.

    Args:
        depth: how many leading dimensions count the positions.
    """
    val = node.meta.get("val")
    if node.op not in ("call_function", "call_method") or not isinstance(val, Tensor) or val.dim() <= depth:
        return None
    slots = all_slots(node)
    if any(operand.meta.get("val") is None for operand in slots.values()):
        return None
    tags = getattr(node.target, "tags", ())
    if node.target in _OVER_FEATURES:
        return [Slot(_OVER_FEATURES[node.target])] if _features_behind(node, depth) else None
    if node.target is ops.normalization_rule:
        width = bind(node)["width"]
        return [Slot("y"), Slot("x")] if 0 < width <= val.dim() - depth else None
    if node.target in _REDUCTIONS or node.target in _SOFTMAX:
        return [Slot("self")] if _dims_behind(node, depth) else None
    if node.target in _ELEMENTWISE or torch.Tag.pointwise in tags:
        return _broadcast(slots, val, depth)
    return None


def _features_behind(node: Node, depth: int) -> bool:
    x = all_slots(node)[Slot("input")].meta["val"]
    taken = len(bind(node)["normalized_shape"]) if node.target is not aten.linear.default else 1
    return x.dim() - taken >= depth


def _dims(node: Node) -> list[int] | None:
    dim = bind(node).get("dim")
    rank = all_slots(node)[Slot("self")].meta["val"].dim()
    dims = [dim] if isinstance(dim, int) else dim
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    return [d % rank for d in dims]


def _dims_behind(node: Node, depth: int) -> bool:
    dims = _dims(node)
    keeps = node.target in _SOFTMAX or bool(bind(node).get("keepdim"))
    return dims is not None and keeps and min(dims) >= depth


def _broadcast(slots: Mapping[Slot, Node], val: Tensor, depth: int) -> list[Slot] | None:
    positional = []
    for slot, operand in slots.items():
        held = operand.meta.get("val")
        if isinstance(held, (tuple, list)):
            return None
        if not isinstance(held, Tensor):
            continue
        if held.dim() == val.dim() and _same(held.shape[:depth], val.shape[:depth]):
            positional.append(slot)
        elif held.dim() > val.dim() - depth:
            return None
    return positional or None


def _same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    return all(str(x) == str(y) for x, y in zip(a, b, strict=True))


def _at_positions(
    graph: fx.Graph,
    node: Node,
    positional: list[Slot],
    choice: Node,
    chosen: dict[Node, Node],
) -> Node:
    """``node``, computed from the chosen positions of its operands."""
    new = graph.node_copy(node)
    new.meta = dict(node.meta) | {"val": _chosen_value(node, choice)}
    if node.target in _REDUCTIONS or node.target in _SOFTMAX:
        dims = _dims(node)
        assert dims is not None
        rank = node.meta["val"].dim()
        behind = [d - rank for d in dims]
        set_arg(new, "dim", behind if isinstance(bind(node)["dim"], (list, tuple)) else behind[0])
    for slot in positional:
        operand = all_slots(node)[slot]
        if operand not in chosen:
            with graph.inserting_before(new):
                chosen[operand] = graph.call_function(choice.target, (operand, *choice.args[1:]))  # type: ignore[arg-type]
            chosen[operand].meta["val"] = _chosen_value(operand, choice)
        replace(new, slot, chosen[operand])
    return new


def _chosen_value(node: Node, choice: Node) -> Tensor:
    value = node.meta["val"]
    arguments = fx.map_arg(choice.args[1:], lambda n: n.meta["val"])
    with value.fake_mode:
        return choice.target(value, *arguments)  # type: ignore[operator]
