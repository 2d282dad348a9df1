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
    while (segments := find_loop(graph)) is not None:
        _Roll(graph, segments).run()
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
        segments: the loop.
        collected: place in the template -> the nodes that put the results of all steps together.
        last: place in the template -> readers of its last result.
    """

    graph: Graph
    segments: Segments
    collected: dict[int, list[Node]] = field(default_factory=dict)
    last: dict[int, list[Node]] = field(default_factory=dict)

    def run(self) -> None:
        segments = self.segments
        self._read_from_outside()
        written = [p for p in range(len(segments.template)) if segments.is_written(p)]
        state = [p for p in segments.first if p not in written]
        sources = {p: segments.template[p].args[1] for p in written}
        if any(segments.places.get(source, (0, 0))[0] != 2 for source in sources.values()):  # type: ignore[arg-type]
            raise NoLoop
        stacked = [*dict.fromkeys([*self.collected, *(segments.places[n][1] for n in sources.values())])]  # type: ignore[index]
        order = [*stacked, *(p for p in [*state, *self.last] if p not in stacked and p not in written)]
        order = [*dict.fromkeys(order)]
        anchor = next(n for n in segments.steps[-1] if n is not None)
        with self.graph.inserting_before(anchor):
            body, rows, constants = self._body(order)
            xs = [self._rows(place) for place in rows]
            first = [segments.first.get(place, xs[0]) for place in order]
            loop = self.graph.call_function(
                CapturedLoop(body, len(stacked)), (), {"x": xs, "state": first, "constants": constants, "sizes": None}
            )
            loop.meta = {k: v for k, v in segments.template[0].meta.items() if k in ("nn_module_stack", "stack_trace")}
            loop.meta["steps"] = len(segments.steps)
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
            node = segments.steps[-1][place]
            assert node is not None
            outside = self.last[place]
            item.meta = _called(node)
            node.replace_all_uses_with(item, delete_user_cb=outside.__contains__)
        for place in written:
            self._write(place, items[segments.places[sources[place]][1]])  # type: ignore[index]

    def _read_from_outside(self) -> None:
        """Fill ``collected`` and ``last``.

        Raises:
            NoLoop: if a result of a step is read in another way.
        """
        segments = self.segments
        for step, nodes in enumerate(segments.steps):
            for place, node in enumerate(nodes):
                for user in list(node.users) if node is not None and not segments.is_row(node) else ():
                    if segments.within(user):
                        continue
                    if user.target in (aten.stack.default, aten.cat.default) and self._is_whole(user, place):
                        self.collected.setdefault(place, [])
                        if user not in self.collected[place]:
                            self.collected[place].append(user)
                    elif step == len(segments.steps) - 1:
                        self.last.setdefault(place, []).append(user)
                    else:
                        raise NoLoop

    def _is_whole(self, user: Node, place: int) -> bool:
        results = [step[place] for step in self.segments.steps]
        return list(user.args[0]) in (results, results[::-1])  # type: ignore[arg-type]

    def _body(self, order: list[int]) -> tuple[fx.GraphModule, list[int], list[Node]]:
        """The graph of a step; the places of its rows; its constants."""
        segments, body = self.segments, Graph()
        copies: dict[Node, Node] = {}
        constants: dict[Node, Node] = {}
        counting = [
            p for p, node in enumerate(segments.template) if node.target in (SELECT, SCATTER) and segments.counts(p)
        ]
        rows = [p for p in counting if segments.is_row(segments.template[p])]
        if any(p not in rows and not segments.is_written(p) for p in counting):
            raise NoLoop
        # rows that are the same in every step
        fixed = [n for p, n in enumerate(segments.template) if segments.is_row(n) and p not in rows]
        first: dict[tuple[Any, ...], int] = {}  # (tensor, dimension, indices) -> the place where they are read first
        for place in rows:
            source = (*segments.template[place].args[:2], *segments.indices(place))
            if (earlier := first.setdefault(source, place)) == place:
                copies[segments.template[place]] = body.placeholder(f"row_{place}")
            else:
                copies[segments.template[place]] = copies[segments.template[earlier]]
        rows = [*first.values()]
        for place in order:
            before = segments.steps[1][place]
            assert before is not None
            copies[before] = body.placeholder(f"state_{place}")
        outside = dict.fromkeys(
            n
            for p, node in enumerate(segments.template)
            if not segments.is_row(node) and not segments.is_written(p)
            for n in node.all_input_nodes
            if not segments.within(n) or n in fixed
        )
        for node in outside:
            constants[node] = copies[node] = body.placeholder(f"constant_{len(constants)}")
        for place, node in enumerate(segments.template):
            if node in copies or segments.is_written(place) or node in fixed:
                continue
            copies[node] = body.node_copy(node, copies.__getitem__)
        body.output(tuple(copies[segments.template[place]] for place in order))
        body.eliminate_dead_code()
        body.lint()
        outer = [segments.steps[0][segments.places[n][1]] if n in fixed else n for n in constants]
        return fx.GraphModule(nn.Module(), body, class_name="Step"), rows, outer  # type: ignore[return-value]

    def _rows(self, place: int) -> Node:
        """The tensor of all rows that the steps read at a place, in order, time first."""
        x, dim, _ = self.segments.template[place].args
        indices, value = self.segments.indices(place), x.meta["val"]  # type: ignore[union-attr]
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
            if results[0] is not self.segments.steps[0][self.segments.places[results[0]][1]]:  # type: ignore[index]
                item = self.graph.call_function(aten.flip.default, (item, [0]))
            new = self._moved(item, dim, rank + 1)  # type: ignore[arg-type]
            if not stacks:
                new = self.graph.call_function(aten.flatten.using_ints, (new, dim, dim + 1))  # type: ignore[operator]
        new.meta = dict(user.meta) | _called(self.segments.steps[-1][self.segments.places[results[0]][1]])  # type: ignore[index]
        user.replace_all_uses_with(new)

    def _moved(self, item: Node, dim: int, rank: int) -> Node:
        order = [*range(1, dim + 1), 0, *range(dim + 1, rank)]
        return item if dim == 0 else self.graph.call_function(aten.permute.default, (item, order))

    def _write(self, place: int, item: Node) -> None:
        """Let the results of all steps replace a tensor that the steps wrote row by row."""
        node, segments = self.segments.steps[-1][place], self.segments
        if node is None:
            return
        indices, dim = segments.indices(place), node.args[2]
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
