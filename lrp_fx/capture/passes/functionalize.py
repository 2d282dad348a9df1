"""In-place operators made functional, writes through views included, in one walk.

A view is created anew after a write to its memory, for its next reader. A write to a view becomes a scatter into its
base, and so on up to the tensor that owns the memory. The captured values tell which tensors share memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.dimensions import permutation
from lrp_fx.graph.module_calls import hand_on, unnoted
from lrp_fx.graph.operands import dtype
from lrp_fx.operators.schema import is_fresh, is_mutating, schema
from lrp_fx.operators.table import OpTable, bind

aten = torch.ops.aten

#: views that have a scatter of the same arguments
_SCATTERS = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
    aten.as_strided.default: aten.as_strided_scatter.default,
}


class NotHere(Exception):
    """This pass cannot express a write; torch's own functionalisation then takes over."""


def drop_unread_writes(graph: fx.Graph) -> None:
    """Remove writes into a new tensor without other readers, and the nodes that only these writes need."""
    for node in reversed(graph.nodes):
        if node.users or not is_mutating(node) or not isinstance(node.args[0], Node):
            continue
        if is_fresh(node.args[0]) and _leads_only_to(node.args[0], node):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _leads_only_to(start: Node, end: Node) -> bool:
    """Whether every node computed from ``start`` is used by ``end`` alone."""
    reached, stack = {end}, [start]
    while stack:
        for user in stack.pop().users:
            if user not in reached:
                if user.op == "output" or is_mutating(user):
                    return False
                reached.add(user)
                stack.append(user)
    return True


def functionalise(graph_module: fx.GraphModule) -> bool:
    """Replace all in-place operators.

    Returns:
        False, with the graph unchanged, where a write cannot be expressed: the caller then asks torch for a full
        functionalisation, which costs more than the export itself.
    """
    graph = graph_module.graph
    if not any(is_mutating(n) for n in graph.nodes):
        return True
    memory = _Memory(graph)
    try:
        if any(is_mutating(n) and memory.owner(_written(n)) is None for n in graph.nodes):
            return False
        new = _Writer(graph, memory).run()
    except NotHere:
        return False
    new._codegen = graph._codegen
    graph_module.graph = new
    graph_module.graph.eliminate_dead_code()
    return True


def _written(node: Node) -> Node:
    """The one argument that an operator writes to."""
    written = [i for i, a in enumerate(schema(node).arguments) if a.alias_info is not None and a.alias_info.is_write]
    if written != [0] or not isinstance(node.args[0], Node):
        raise NotHere
    return node.args[0]


def _storage(node: Node) -> int | None:
    val = node.meta.get("val")
    try:
        return val.untyped_storage()._cdata if isinstance(val, Tensor) else None
    except NotImplementedError:  # sparse tensors, tensors inside of vmap
        return None


class _Memory:
    """The bases of views."""

    def __init__(self, graph: fx.Graph) -> None:
        self.parents: dict[Node, Node] = {}
        for node in graph.nodes:
            if node.op == "call_function" and not is_mutating(node):
                self._place(node)
            elif node.op == "call_function" and is_mutating(node):
                self.parents[node] = _written(node)

    def _place(self, node: Node) -> None:
        reads = node.all_input_nodes
        if node.target is operator.getitem and reads:
            reads = reads[0].all_input_nodes
        parent = next((n for n in reads if self._shares(node, n)), None)
        if parent is not None:
            self.parents[node] = parent

    @staticmethod
    def _shares(node: Node, other: Node) -> bool:
        storage = _storage(node)
        return storage is not None and storage == _storage(other)

    def owner(self, node: Node) -> Node | None:
        """The tensor that owns the memory of ``node``; None if it has no captured value."""
        while node in self.parents:
            node = self.parents[node]
        has_value = node.op == "call_function" or isinstance(node.meta.get("val"), Tensor)
        return node if has_value else None


@dataclass
class _Writer:
    """Copies a graph, with the current version of every memory."""

    graph: fx.Graph
    memory: _Memory
    new: fx.Graph = field(default_factory=fx.Graph)
    copies: dict[Node, Node] = field(default_factory=dict)
    versions: dict[Node, int] = field(default_factory=dict)  # owner -> number of writes so far
    version_of: dict[Node, int] = field(default_factory=dict)  # node -> version its copy is of

    def run(self) -> fx.Graph:
        for node in self.graph.nodes:
            if node.op == "output":
                copy = self.new.output(fx.map_arg(node.args[0], self.current))
                copy.meta = dict(node.meta)
            elif node.op == "call_function" and is_mutating(node):
                self._write(node)
            else:
                self._keep(node, self.new.node_copy(node, self.current))
        return self.new

    def current(self, node: Node) -> Node:
        """The copy of ``node`` as a reader sees it now."""
        owner = self.memory.owner(node) or node
        if self.version_of.get(node, 0) != self.versions.get(owner, 0):
            self._renew(node)
        return self.copies[node]

    def _keep(self, node: Node, copy: Node) -> None:
        self.copies[node] = copy
        self.version_of[node] = self.versions.get(self.memory.owner(node) or node, 0)

    def _renew(self, node: Node) -> None:
        parent = self.memory.parents[node]
        if is_mutating(node):  # its result is the written tensor
            self._keep(node, self.current(parent))
        elif node.target is operator.getitem:
            pieces = node.args[0]
            assert isinstance(pieces, Node)
            self._keep(pieces, self._again(pieces))
            self._keep(node, self._again(node, self.copies.__getitem__))
        else:
            self._keep(node, self._again(node))

    def _again(self, node: Node, reads: Callable[[Node], Node] | None = None) -> Node:
        """A new copy of a view, of the current version; it is no input or output of a module."""
        copy = self.new.node_copy(node, reads or self.current)
        copy.meta = unnoted(copy.meta)
        return copy

    def _emit(self, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.new.call_function(target, args, kwargs)
        node.meta = unnoted(like.meta)
        return node

    def _write(self, node: Node) -> None:
        written = _written(node)
        value = self._functional(node, written)
        view = written
        while view in self.memory.parents:
            parent = self.memory.parents[view]
            if not is_mutating(view):
                value = self._scatter(view, self.current(parent), value)
                value.meta = unnoted(node.meta) | {"val": parent.meta["val"]}
            view = parent
        self.versions[view] = self.versions.get(view, 0) + 1
        self._keep(view, value)
        self.current(node)

    def _functional(self, node: Node, written: Node) -> Node:
        """The written tensor after the operator."""
        target: Any = node.target
        args: Any = fx.map_arg(node.args, self.current)
        kwargs: Any = fx.map_arg(dict(node.kwargs), self.current)
        if target is aten.copy_.default:
            if dtype(node.args[1]) is not dtype(written):
                args = (args[0], self._emit(node, aten.type_as.default, args[1], args[0]), *args[2:])
            value = self._emit(node, aten.expand_as.default, args[1], args[0])
        elif target is aten.zero_.default:
            value = self._emit(node, aten.zeros_like.default, args[0])
        else:
            value = self._emit(node, functional_twin(target), *args, **kwargs)
            promoted = {dtype(n) for n in node.all_input_nodes} - {dtype(written), None}
            if any(d.is_floating_point or d.is_complex for d in promoted if d is not None):
                value = self._emit(node, aten.type_as.default, value, args[0])
        value.meta["val"] = written.meta["val"]
        hand_on(node, value)
        return value

    def _scatter(self, view: Node, parent: Node, value: Node) -> Node:
        """``parent`` with ``value`` in the entries of ``view``."""
        rest: Any = fx.map_arg(view.args[1:], self.current)
        form = OpTable.shipped().form(view)
        if form in ("copy", "cast", "detach"):
            return value
        if form in ("reshape", "insert"):
            return self._emit(view, aten.reshape_as.default, value, parent)
        if form == "permute":
            dims = permutation(view)
            return self._emit(view, aten.permute.default, value, [dims.index(i) for i in range(len(dims))])
        if view.target in _SCATTERS:
            return self._emit(view, _SCATTERS[view.target], parent, value, *rest, **_current_kwargs(self, view))
        if view.target is aten.narrow.default:
            dim, start, length = rest
            return self._emit(view, aten.slice_scatter.default, parent, value, dim, start, start + length)
        if view.target is operator.getitem:
            return self._scatter_piece(view, parent, value)
        raise NotHere

    def _scatter_piece(self, view: Node, parent: Node, value: Node) -> Node:
        pieces, index = view.args
        assert isinstance(pieces, Node) and isinstance(index, int)
        dim = bind(pieces).get("dim", 0)
        if pieces.target is aten.unbind.int:
            return self._emit(view, aten.select_scatter.default, parent, value, dim, index)
        if OpTable.shipped().form(pieces) != "pieces":
            raise NotHere
        sizes = [t.shape[dim] for t in pieces.meta["val"]]
        if not all(isinstance(s, int) for s in sizes):
            raise NotHere
        start = sum(sizes[:index])
        return self._emit(view, aten.slice_scatter.default, parent, value, dim, start, start + sizes[index])


def _current_kwargs(writer: _Writer, view: Node) -> Any:
    return fx.map_arg(dict(view.kwargs), writer.current)


def functional_twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """``add_`` -> ``add``, same overload.

    Raises:
        NotHere: if there is none, or if the operator changes shapes and not values.
    """
    shapes = torch.Tag.inplace_view in target.tags and target._opname != "detach_"
    if shapes or not target._opname.endswith("_"):
        raise NotHere
    packet = getattr(getattr(torch.ops, target.namespace), target._opname.removesuffix("_"), None)
    twin = getattr(packet, target._overloadname, None)
    if twin is None:
        raise NotHere
    return twin
