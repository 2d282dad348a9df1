"""Capture a model with loops over time at two short lengths."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lrp_fx.capture.guards import Guard, Shapes
from lrp_fx.capture.loops.find import NoLoop
from lrp_fx.capture.loops.merge import Merge, NotAlike
from lrp_fx.capture.loops.roll import roll
from lrp_fx.capture.loops.shapes import propagate
from lrp_fx.graph.loop import CapturedLoop
from lrp_fx.graph.steps import SHOWN

SHORT = 5  #: the shorter one of both lengths
_AT_LEAST = sympy.Ge.__name__

Place = tuple[int, int]  #: (number of the tensor among the inputs, axis)


@dataclasses.dataclass(frozen=True)
class Rolled:
    """A captured graph whose loops run as many steps as the input has.

    Attributes:
        graph_module: the graph.
        leaves: the example inputs that it was made for, of the full length.
        least: the smallest length.
        time: the axes of that length.
        shapes: what the graph at the shorter length serves.
    """

    graph_module: fx.GraphModule
    leaves: list[Any]
    least: int
    time: tuple[Place, ...]
    shapes: Shapes


def time_axes(leaves: Sequence[Any], length: int) -> tuple[Place, ...]:
    """The axes of inputs that have the length of a loop; the second of a tensor before the first."""
    places = []
    for number, tensor in enumerate(leaf for leaf in leaves if isinstance(leaf, Tensor)):
        axes = [axis for axis in (1, 0) if tensor.dim() > axis and tensor.shape[axis] == length]
        places += [(number, axis) for axis in axes[:1]]
    return tuple(places)


def shortened(tree: Any, time: Sequence[Place], length: int) -> Any:
    """``tree`` with the first ``length`` entries of its tensors along the axes of time."""
    axes, numbers = dict(time), itertools.count()

    def cut(leaf: Any) -> Any:
        axis = axes.get(next(numbers)) if isinstance(leaf, Tensor) else None
        return leaf if axis is None else leaf.narrow(axis, 0, length)

    return pytree.tree_map(cut, tree)


def grown_as(before: Any, after: Any, tree: Any) -> Any:
    """``tree``, with axes repeated that are twice as long in ``after`` as in ``before``."""
    sizes = [
        [b.shape, a.shape]
        for b, a in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True)
        if isinstance(b, Tensor)
    ]
    feed = iter(sizes)

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        for axis, (old, new) in enumerate(zip(*next(feed), strict=True)):
            leaf = leaf if old == new else torch.cat([leaf, leaf], axis)
        return leaf

    return pytree.tree_map(grow, tree)


def rolled(
    captured_at: Callable[[Any], Iterator[tuple[fx.GraphModule, Shapes, Any]]], inputs: Any, time: tuple[Place, ...]
) -> Iterator[Rolled]:
    """Captures of loops over time.

    Args:
        captured_at: example inputs -> (graph, its shapes, function that generalises example inputs as it did).
        inputs: the example inputs, (args, kwargs).
        time: the axes of time.
    """
    pairs = zip(
        captured_at(shortened(inputs, time, SHORT)), captured_at(shortened(inputs, time, SHORT + 1)), strict=False
    )
    for (one, shapes, generalise), (other, _, _) in pairs:
        try:
            if not roll(one) or not roll(other):
                continue
            tensors = [n for n in one.graph.find_nodes(op="placeholder") if isinstance(n.meta.get("val"), Tensor)]
            number, axis = time[0]
            Merge(one, other, SHORT, (tensors[number], axis)).run()
            steps = _steps(one)
            leaves = pytree.tree_leaves(generalise(inputs))
            free = [
                [isinstance(dim, str) or (i, a) in time for a, dim in enumerate(dims)]
                for i, dims in enumerate(shapes.dims)
            ]
            propagate(one, leaves, free)
        except (NoLoop, NotAlike):
            continue
        one.graph.lint()
        one.recompile()
        yield Rolled(one, leaves, SHOWN + SHORT - steps, time, shapes)


def _steps(graph_module: fx.GraphModule) -> int:
    """The number of steps of the shortest loop at the shorter length."""
    loops = [n for n in graph_module.graph.nodes if isinstance(n.target, CapturedLoop)]
    return min(int(n.meta["steps"]) for n in loops)


def restricted(shapes: Shapes, merged: Rolled) -> Shapes:
    """The shapes of the merged graph, with the guards of the graph at the shorter length."""
    names: dict[str, str] = {}
    for dims, mine in zip(merged.shapes.dims, shapes.dims, strict=True):
        names |= {a: b for a, b in zip(dims, mine, strict=True) if isinstance(a, str) and isinstance(b, str)}
    number, axis = merged.time[0]
    length = shapes.dims[number][axis]
    if not isinstance(length, str) or any(shapes.dims[n][a] != length for n, a in merged.time):
        raise NotAlike("the length is fixed")
    guards = [dataclasses.replace(g, condition=_renamed(g.condition, names)) for g in merged.shapes.guards]
    guards.append(Guard([_AT_LEAST, length, merged.least], "a loop over time, of which some steps are written out"))
    limits = dict(shapes.limits)
    for name, (low, high) in merged.shapes.limits.items():
        if name in names:
            mine = limits[names[name]]
            limits[names[name]] = (max(low, mine[0]), min(high, mine[1]))
    return dataclasses.replace(shapes, guards=(*shapes.guards, *guards), limits=limits)


def _renamed(plain: Any, names: dict[str, str]) -> Any:
    if isinstance(plain, str):
        return names.get(plain, plain)
    if isinstance(plain, (list, tuple)):
        return [plain[0], *(_renamed(part, names) for part in plain[1:])]
    return plain
