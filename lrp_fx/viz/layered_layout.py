"""Layered layout of an acyclic graph: places of nodes, and ways of edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_fx.extras import require

if TYPE_CHECKING:
    import networkx

Point = tuple[float, float]
_Place = tuple[Any, int]  #: (node, its layer), or (edge, a layer that it passes)
_GAP = 0.4  #: height of an edge in a layer that it passes; a node has height 1
_STRETCH = 1.2  #: height of a drawing by that of its fullest layer: more is straighter, less is smaller
_LARGE = 20_000  #: number of steps between layers from which on neighbours are not exchanged one by one


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

    Layers are the nodes' attribute ``depth`` if all have it, otherwise the lengths of longest paths. The order inside
    layers and heights are fast-sugiyama's; heights are then brought together, as edges need less room than nodes.

    Args:
        graph: the graph.
        span: an edge over more layers than this has no places of its own between its ends; None for all edges.

    Raises:
        MissingExtraError: if networkx, fast-sugiyama or scipy is not installed.
    """
    columns = _columns(graph)
    ways: dict[tuple[Any, Any], list[_Place]] = {}
    for a, b in graph.edges:
        near = span is None or columns[b] - columns[a] <= span
        between = [((a, b), column) for column in range(columns[a] + 1, columns[b])] if near else []
        ways[a, b] = [(a, columns[a]), *between, (b, columns[b])]
    nodes = [(node, columns[node]) for node in graph]
    sizes = dict.fromkeys(nodes, 1.0) | {place: _GAP for way in ways.values() for place in way[1:-1]}
    heights = _brought_together(_heights(list(sizes), list(ways.values())), sizes)
    return Layout(
        {node: (column, heights[node, column]) for node, column in nodes},
        {edge: [(place[1], heights[place]) for place in way] for edge, way in ways.items()},
    )


def _columns(graph: networkx.DiGraph) -> dict[Any, int]:
    nx: Any = require("networkx", "layout")
    depths = dict(graph.nodes(data="depth"))
    if any(depth is None for depth in depths.values()) or any(depths[a] >= depths[b] for a, b in graph.edges):
        return {node: column for column, layer in enumerate(nx.topological_generations(graph)) for node in layer}
    used = {depth: column for column, depth in enumerate(sorted(set(depths.values())))}
    return {node: used[depth] for node, depth in depths.items()}


def _heights(places: Sequence[_Place], ways: Sequence[Sequence[_Place]]) -> dict[_Place, float]:
    """Heights by fast-sugiyama, one unconnected part of the graph below another.

    It has layers of its own, the lengths of longest paths. These are the given ones, as all edges are given in steps
    from layer to layer, and a place to which no step leads gets one.
    """
    library: Any = require("fast_sugiyama", "layout")
    firsts: dict[int, _Place] = {}
    for place in places:
        firsts.setdefault(place[1], place)
    steps = [step for way in ways for step in pairwise(way) if step[1][1] == step[0][1] + 1]
    reached = {step[1] for step in steps}
    steps += [(firsts[place[1] - 1], place) for place in places if place[1] and place not in reached]
    numbers = {place: number for number, place in enumerate(places)}
    drawn = library.from_edges(
        [(numbers[a], numbers[b]) for a, b in steps], minimum_length=1, vertex_spacing=1, ranking_type="up",
        crossing_minimization="barycenter", transpose=len(steps) < _LARGE,
    ) if steps else []  # fmt: skip
    parts = [[(number, x) for number, (x, _) in points] for points, *_ in drawn]
    alone = set(range(len(places))).difference(number for part in parts for number, _ in part)
    heights: dict[_Place, float] = {}
    start = 0.0
    for part in [*parts, *([(number, 0.0)] for number in sorted(alone))]:
        lowest = min(x for _, x in part)
        heights |= {places[number]: start + x - lowest for number, x in part}
        start = max(start + x - lowest for _, x in part) + 1
    return heights


def _brought_together(heights: Mapping[_Place, float], sizes: Mapping[_Place, float]) -> dict[_Place, float]:
    """Heights nearest to scaled ones at which nothing overlaps.

    In a layer, the order stays; distances are at least the sizes. The sum of squares of the moves is least: an isotonic
    regression.
    """
    optimize: Any = require("scipy.optimize", "layout")
    layers: dict[int, list[_Place]] = {}
    for place in sorted(heights, key=heights.__getitem__):
        layers.setdefault(place[1], []).append(place)
    lowest, highest = min(heights.values(), default=0.0), max(heights.values(), default=0.0)
    fullest = max((sum(sizes[place] for place in listed) for listed in layers.values()), default=0.0)
    scale = min(1.0, _STRETCH * fullest / (highest - lowest + 1))
    moved: dict[_Place, float] = {}
    for listed in layers.values():
        taken = np.array([sizes[place] for place in listed])
        least = np.cumsum(taken) - taken / 2
        wanted = (np.array([heights[place] for place in listed]) - (lowest + highest) / 2) * scale
        moved |= zip(listed, (optimize.isotonic_regression(wanted - least).x + least).tolist(), strict=True)
    return moved
