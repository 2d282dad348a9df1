"""Figure of a relevance flow graph: inputs on the left, the target on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lrp_fx.extras import require
from lrp_fx.viz.colours import background, foreground, ink
from lrp_fx.viz.figures import fractions, literal, new_figure, plain
from lrp_fx.viz.layered_layout import Layout, Point, layout

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 0.66, 0.6  #: size of a box; columns and rows have a distance of 1
_LETTERS = 20  #: most letters of a box
_LABELLED = 10  #: most edges with labels
_LABEL = (0.3, 0.16)  #: size of such a label


def draw_circuit(
    graph: networkx.DiGraph,
    *,
    ax: Axes | None = None,
    amounts: bool = True,
    names: Callable[[str], str] = str,
) -> Figure:
    """Draw a graph of :func:`lrp_fx.concepts.relevance_flow`.

    A node is a box in the column of its depth in the graph; edges run around the boxes between. Red is positive, blue
    negative relevance. The width of an edge shows its magnitude; the strongest edges have labels.

    Args:
        graph: the graph; prune a large one first.
        ax: axes to draw on; None for a new figure.
        amounts: whether to label nodes and edges with their relevance.
        names: name of a node -> label of its box.

    Raises:
        MissingExtraError: if networkx, fast-sugiyama, scipy or matplotlib is not installed.
    """
    placed = layout(graph)
    points = [*placed.places.values(), *(point for way in placed.ways.values() for point in way)]
    columns = 1 + max((x for x, _ in points), default=0)
    top, bottom = min((y for _, y in points), default=0.0) - 0.5, max((y for _, y in points), default=0.0) + 0.5
    if ax is None:
        longest = max((len(plain(names(node), _LETTERS, ends=True)) for node in graph), default=0)
        size = (0.9 + 0.055 * longest) * columns + 0.2, 0.75 * (bottom - top) + 0.3
        ax = new_figure(*size, extra="concepts").add_subplot()
    _draw_nodes(graph, ax, placed, amounts, names)
    _draw_edges(graph, ax, placed, amounts)
    ax.set_xlim(-0.4, columns - 0.6)
    ax.set_ylim(bottom, top)
    ax.set_axis_off()
    return ax.figure  # type: ignore[return-value]


def _draw_nodes(graph: networkx.DiGraph, ax: Axes, placed: Layout, amounts: bool, names: Callable[[str], str]) -> None:
    patches: Any = require("matplotlib.patches", "concepts")
    relevances = dict(graph.nodes(data="relevance"))
    largest = max(map(abs, relevances.values()), default=0.0) or 1.0
    for node, (x, y) in placed.places.items():
        colour = background(0.8 * relevances[node] / largest)  # text needs contrast: no colours of the dark ends
        box = patches.FancyBboxPatch(
            (x - _WIDTH / 2, y - _HEIGHT / 2), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", zorder=3,
            linewidth=0.8, facecolor=fractions(colour), edgecolor=ink("quiet"),
        )  # fmt: skip
        ax.add_patch(box)
        text = plain(names(node), _LETTERS, ends=True)
        label = f"{text}\n{relevances[node]:+.3g}" if amounts else text
        style: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": 8,
            "zorder": 4,
            "color": fractions(foreground(colour)),
        }
        literal(ax.text(x, y, label, **style))


def _draw_edges(graph: networkx.DiGraph, ax: Axes, placed: Layout, amounts: bool) -> None:
    """Curves from the right side of a box to the left side of another one."""
    patches: Any = require("matplotlib.patches", "concepts")
    edges = sorted(graph.edges(data="weight"), key=lambda edge: abs(edge[2]))
    largest = max((abs(w) for *_, w in edges), default=0.0) or 1.0
    leaves = _ports(placed, graph.nodes, 0, 1)
    arrives = _ports(placed, graph.nodes, -1, -2)
    for a, b, weight in edges:
        way = placed.ways[a, b]
        start = (way[0][0] + _WIDTH / 2, way[0][1] + leaves[a, b])
        end = (way[-1][0] - _WIDTH / 2, way[-1][1] + arrives[a, b])
        colour = fractions(background(0.35 * (1 if weight >= 0 else -1) + 0.55 * weight / largest))
        width = 0.6 + 3.6 * abs(weight) / largest
        arrow = patches.FancyArrowPatch(
            path=_curve([start, *way[1:-1], end]), arrowstyle="-|>", mutation_scale=7 + width, shrinkA=0, shrinkB=0,
            linewidth=width, color=colour, zorder=2, joinstyle="miter",
        )  # fmt: skip
        arrow.set_facecolor("none" if len(way) > 2 else colour)
        ax.add_patch(arrow)
    if amounts:
        _label_edges(ax, placed, edges[: -_LABELLED - 1 : -1], leaves, arrives)


def _label_edges(
    ax: Axes, placed: Layout, edges: list[tuple[Any, Any, float]], leaves: dict[Any, float], arrives: dict[Any, float]
) -> None:
    """Amounts of edges, the strongest first, where none covers another: beside a box on the way, or halfway."""
    taken: list[Point] = []
    for a, b, weight in edges:
        way = placed.ways[a, b]
        x, y = way[1] if len(way) > 2 else (
            (way[0][0] + way[1][0]) / 2, (way[0][1] + leaves[a, b] + way[1][1] + arrives[a, b]) / 2
        )  # fmt: skip
        if any(abs(x - u) < _LABEL[0] and abs(y - v) < _LABEL[1] for u, v in taken):
            continue
        taken.append((x, y))
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4}
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": ink("quiet"), "zorder": 5}
        literal(ax.text(x, y, f"{weight:+.2g}", bbox=box, **style))


def _ports(placed: Layout, nodes: Iterable[Any], end: int, next_to_it: int) -> dict[tuple[Any, Any], float]:
    """Edge -> offset from the middle of a box's side where it ends, ordered by the height of its other end."""
    ports = {}
    for node in nodes:
        edges = [edge for edge in placed.ways if edge[end] == node]
        edges.sort(key=lambda edge: placed.ways[edge][next_to_it][1])
        for number, edge in enumerate(edges):
            ports[edge] = (number - (len(edges) - 1) / 2) * min(0.12, 0.8 * _HEIGHT / len(edges))
    return ports


def _curve(points: list[Point]) -> Any:
    """A smooth path from one end to another, which bends between columns only and passes boxes on a straight line."""
    paths: Any = require("matplotlib.path", "concepts")
    beside = [(x + side * _WIDTH / 2, y) for x, y in points[1:-1] for side in (-1, 1)]
    vertices, codes = [points[0]], [paths.Path.MOVETO]
    for number, ((x, y), (u, v)) in enumerate(pairwise([points[0], *beside, points[-1]])):
        if number % 2:
            vertices, codes = [*vertices, (u, v)], [*codes, paths.Path.LINETO]
            continue
        vertices += [((x + u) / 2, y), ((x + u) / 2, v), (u, v)]
        codes += [paths.Path.CURVE4] * 3
    return paths.Path(vertices, codes)
