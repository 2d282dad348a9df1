"""Replace the steps of a loop by one operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Graph, Node

from lrp_fx.capture.loops.find import SCATTER, SELECT, NoLoop, Segments, find_loop
from lrp_fx.capture.loops.tidy import tidy
from lrp_fx.graph.loop import CapturedLoop
from lrp_fx.graph.module_calls import CALLS

aten = torch.ops.aten


def roll(graph_module: fx.GraphModule) -> int:
    """Make a :class:`CapturedLoop` of every loop.

    Returns:
        The number of loops.
    """
    graph, count = graph_module.graph, 0
    tidy(graph)
    while (found := find_loop(graph)) is not None:
        _Roll(graph, found).run()
        graph.eliminate_dead_code()
        count += 1
    graph.lint()
    graph_module.recompile()
    return count


@dataclass
class _Roll:
    """One loop.

    Attributes:
        graph: the captured graph.
        found: the loop.
        collected: place in the template -> the nodes that put the results of all steps together.
        last: place in the template -> readers of its last result.
    """

    graph: Graph
    found: Segments
    collected: dict[int, list[Node]] = field(default_factory=dict)
    last: dict[int, list[Node]] = field(default_factory=dict)

    def run(self) -> None:
        found = self.found
        self._read_from_outside()
        written = [p for p in range(len(found.template)) if found.is_written(p)]
        state = [p for p in found.first if p not in written]
        sources = {p: found.template[p].args[1] for p in written}
        if any(found.places.get(source, (0, 0))[0] != 2 for source in sources.values()):  # type: ignore[arg-type]
            raise NoLoop
        stacked = [*dict.fromkeys([*self.collected, *(found.places[n][1] for n in sources.values())])]  # type: ignore[index]
        order = [*stacked, *(p for p in [*state, *self.last] if p not in stacked and p not in written)]
        order = [*dict.fromkeys(order)]
        anchor = next(n for n in found.steps[-1] if n is not None)
        with self.graph.inserting_before(anchor):
            body, rows, constants = self._body(order)
            xs = [self._rows(place) for place in rows]
            first = [found.first.get(place, xs[0]) for place in order]
            loop = self.graph.call_function(
                CapturedLoop(body, len(stacked)), (), {"x": xs, "state": first, "constants": constants, "sizes": None}
            )
            loop.meta = {k: v for k, v in found.template[0].meta.items() if k in ("nn_module_stack", "stack_trace")}
            loop.meta["steps"] = len(found.steps)
            items = {p: self.graph.call_function(operator.getitem, (loop, i)) for i, p in enumerate(stacked)}
            lasts = {
                p: self.graph.call_function(operator.getitem, (loop, len(stacked) + order.index(p)))
                for p in self.last
                if p not in written
            }
        for place, users in self.collected.items():
            for user in users:
                self._collect(items[place], user)
        for place, item in lasts.items():
            node = found.steps[-1][place]
            assert node is not None
            outside = self.last[place]
            item.meta = _called(node)
            node.replace_all_uses_with(item, delete_user_cb=outside.__contains__)
        for place in written:
            self._write(place, items[found.places[sources[place]][1]])  # type: ignore[index]

    def _read_from_outside(self) -> None:
        """Fill ``collected`` and ``last``.

        Raises:
            NoLoop: if a result of a step is read in another way.
        """
        found = self.found
        for step, nodes in enumerate(found.steps):
            for place, node in enumerate(nodes):
                for user in list(node.users) if node is not None and not found.is_row(node) else ():
                    if found.within(user):
                        continue
                    if user.target in (aten.stack.default, aten.cat.default) and self._is_whole(user, place):
                        self.collected.setdefault(place, [])
                        if user not in self.collected[place]:
                            self.collected[place].append(user)
                    elif step == len(found.steps) - 1:
                        self.last.setdefault(place, []).append(user)
                    else:
                        raise NoLoop

    def _is_whole(self, user: Node, place: int) -> bool:
        results = [step[place] for step in self.found.steps]
        return list(user.args[0]) in (results, results[::-1])  # type: ignore[arg-type]

    def _body(self, order: list[int]) -> tuple[fx.GraphModule, list[int], list[Node]]:
        """The graph of a step; the places of its rows; its constants."""
        found, body = self.found, Graph()
        copies: dict[Node, Node] = {}
        constants: dict[Node, Node] = {}
        counting = [p for p, node in enumerate(found.template) if node.target in (SELECT, SCATTER) and found.counts(p)]
        rows = [p for p in counting if found.is_row(found.template[p])]
        if any(p not in rows and not found.is_written(p) for p in counting):
            raise NoLoop
        fixed = [n for p, n in enumerate(found.template) if found.is_row(n) and p not in rows]  # the same in every step
        first: dict[tuple[Any, ...], int] = {}  # (tensor, dimension, indices) -> the place where they are read first
        for place in rows:
            source = (*found.template[place].args[:2], *found.indices(place))
            if (earlier := first.setdefault(source, place)) == place:
                copies[found.template[place]] = body.placeholder(f"row_{place}")
            else:
                copies[found.template[place]] = copies[found.template[earlier]]
        rows = [*first.values()]
        for place in order:
            before = found.steps[1][place]
            assert before is not None
            copies[before] = body.placeholder(f"state_{place}")
        outside = dict.fromkeys(
            n
            for p, node in enumerate(found.template)
            if not found.is_row(node) and not found.is_written(p)
            for n in node.all_input_nodes
            if not found.within(n) or n in fixed
        )
        for node in outside:
            constants[node] = copies[node] = body.placeholder(f"constant_{len(constants)}")
        for place, node in enumerate(found.template):
            if node in copies or found.is_written(place) or node in fixed:
                continue
            copies[node] = body.node_copy(node, copies.__getitem__)
        body.output(tuple(copies[found.template[place]] for place in order))
        body.eliminate_dead_code()
        body.lint()
        outer = [found.steps[0][found.places[n][1]] if n in fixed else n for n in constants]
        return fx.GraphModule(nn.Module(), body, class_name="Step"), rows, outer  # type: ignore[return-value]

    def _rows(self, place: int) -> Node:
        """The tensor of all rows that the steps read at a place, in order, time first."""
        x, dim, _ = self.found.template[place].args
        indices, value = self.found.indices(place), x.meta["val"]  # type: ignore[union-attr]
        low, high = min(indices), max(indices) + 1
        if (low, high) != (0, value.shape[dim]):  # type: ignore[index]
            x = self.graph.call_function(aten.slice.Tensor, (x, dim, low, high))
        if indices[1] < indices[0]:
            x = self.graph.call_function(aten.flip.default, (x, [dim]))
        rest = [i for i in range(value.dim()) if i != dim]
        return x if dim == 0 else self.graph.call_function(aten.permute.default, (x, [dim, *rest]))  # type: ignore[return-value]

    def _collect(self, item: Node, user: Node) -> None:
        """Let the results of all steps, time first, replace ``stack`` or ``cat``."""
        results, dim = user.args[0], user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
        rank = results[0].meta["val"].dim()  # type: ignore[index, union-attr]
        stacks = user.target is aten.stack.default
        dim %= rank + 1 if stacks else rank  # type: ignore[operator]
        with self.graph.inserting_before(user):
            if results[0] is not self.found.steps[0][self.found.places[results[0]][1]]:  # type: ignore[index]
                item = self.graph.call_function(aten.flip.default, (item, [0]))
            new = self._moved(item, dim, rank + 1)  # type: ignore[arg-type]
            if not stacks:
                new = self.graph.call_function(aten.flatten.using_ints, (new, dim, dim + 1))  # type: ignore[operator]
        new.meta = dict(user.meta) | _called(self.found.steps[-1][self.found.places[results[0]][1]])  # type: ignore[index]
        user.replace_all_uses_with(new)

    def _moved(self, item: Node, dim: int, rank: int) -> Node:
        order = [*range(1, dim + 1), 0, *range(dim + 1, rank)]
        return item if dim == 0 else self.graph.call_function(aten.permute.default, (item, order))

    def _write(self, place: int, item: Node) -> None:
        """Let the results of all steps replace a tensor that the steps wrote row by row."""
        node, found = self.found.steps[-1][place], self.found
        if node is None:
            return
        indices, dim = found.indices(place), node.args[2]
        value = node.meta["val"]
        if len(indices) != value.shape[dim] or {*indices} != {*range(len(indices))}:  # type: ignore[index]
            raise NoLoop
        with self.graph.inserting_before(node):
            if indices[1] < indices[0]:
                item = self.graph.call_function(aten.flip.default, (item, [0]))
            new = self._moved(item, dim % value.dim(), value.dim())  # type: ignore[operator]
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)


def _called(node: Node | None) -> dict[str, Any]:
    """The module calls whose results a node computes, as metadata."""
    return {k: v for k, v in node.meta.items() if k == CALLS} if node is not None else {}
