"""Layered layout of an acyclic graph: places of nodes, and ways of edges."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lrp_fx.extras import require

if TYPE_CHECKING:
    import networkx

Point = tuple[float, float]
_SWEEPS = 12  #: number of times that layers are sorted by their neighbours
_GAP = 0.4  #: height of an edge in a layer that it passes; a node has height 1


def places_of(graph: networkx.DiGraph) -> dict[Any, tuple[int, float]]:
    """(layer, height) of every node: layers by longest paths, heights near those of its predecessors.

    Raises:
        MissingExtraError: if networkx is not installed.
    """
    nx: Any = require("networkx", "concepts")
    layers = [list(layer) for layer in nx.topological_generations(graph)]
    heights: dict[Any, float] = {}
    places: dict[Any, tuple[int, float]] = {}
    for number, layer in enumerate(layers):
        before = {n: [heights[a] for a in graph.predecessors(n)] for n in layer}
        layer.sort(key=lambda n: sum(before[n]) / len(before[n]) if before[n] else 0.0)
        heights |= {n: place - (len(layer) - 1) / 2 for place, n in enumerate(layer)}
        places |= {n: (number, heights[n]) for n in layer}
    return places


@dataclass(frozen=True)
class Layout:
    """A layered drawing.

    Attributes:
        places: (layer, height) of every node.
        ways: edge -> a point in each layer from its first node to its last.
    """

    places: dict[Any, tuple[int, float]]
    ways: dict[tuple[Any, Any], list[Point]]


def layout(graph: networkx.DiGraph, span: int | None = None) -> Layout:
    """Layout by Sugiyama's method: edges over several layers have a place in each, so that they run around nodes.

    Layers are the nodes' attribute ``depth`` if all have it, otherwise the lengths of longest paths.

    Args:
        graph: the graph.
        span: an edge over more layers than this has no places of its own between its ends; None for all edges.

    Raises:
        MissingExtraError: if networkx is not installed.
    """
    columns = _columns(graph)
    chains: dict[tuple[Any, Any], list[Hashable]] = {}
    members: list[list[Hashable]] = [[] for _ in range(1 + max(columns.values(), default=0))]
    for node, column in columns.items():
        members[column].append(node)
    for a, b in graph.edges:
        between = range(columns[a] + 1, columns[b]) if span is None or columns[b] - columns[a] <= span else ()
        passed: list[Hashable] = [("passed", a, b, c) for c in between]
        for column, point in enumerate(passed, columns[a] + 1):
            members[column].append(point)
        chains[a, b] = [a, *passed, b]
    sizes = {point: 1.0 if point in columns else _GAP for column in members for point in column}
    heights = _heights(members, [pair for chain in chains.values() for pair in pairwise(chain)], sizes)
    where = {point: (column, heights[point]) for column, listed in enumerate(members) for point in listed}
    return Layout({n: where[n] for n in graph}, {edge: [where[p] for p in chain] for edge, chain in chains.items()})


def _columns(graph: networkx.DiGraph) -> dict[Any, int]:
    depths = dict(graph.nodes(data="depth"))
    if any(depth is None for depth in depths.values()) or any(depths[a] >= depths[b] for a, b in graph.edges):
        return {node: column for node, (column, _) in places_of(graph).items()}
    used = {depth: column for column, depth in enumerate(sorted(set(depths.values())))}
    return {node: used[depth] for node, depth in depths.items()}


def _heights(
    members: list[list[Hashable]], links: list[tuple[Hashable, Hashable]], sizes: dict[Hashable, float]
) -> dict[Hashable, float]:
    """Heights of points: layers are sorted by the mean height of their neighbours, on either side by turns."""
    before: dict[Hashable, list[Hashable]] = {}
    behind: dict[Hashable, list[Hashable]] = {}
    for a, b in links:
        behind.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    heights: dict[Hashable, float] = {}
    for listed in members:
        heights |= _stacked(listed, sizes)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for listed in members if forth else members[::-1]:
            near = before if forth else behind
            means = {p: sum(heights[n] for n in near[p]) / len(near[p]) if near.get(p) else heights[p] for p in listed}
            listed.sort(key=means.__getitem__)
            heights |= _stacked(listed, sizes)
    return heights


def _stacked(listed: list[Hashable], sizes: dict[Hashable, float]) -> dict[Hashable, float]:
    """Heights of the points of a layer, stacked in order and centred at 0."""
    height, heights = -sum(sizes[p] for p in listed) / 2, {}
    for point in listed:
        heights[point] = height + sizes[point] / 2
        height += sizes[point]
    return heights
