"""A relevance flow graph as a picture: inputs on the left, the target on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lrp_fx.extras import require
from lrp_fx.viz.colours import background, ink
from lrp_fx.viz.figures import fractions, literal, new_figure

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_circuit(graph: networkx.DiGraph, *, ax: Axes | None = None, amounts: bool = True) -> Figure:
    """Draw a graph of :func:`lrp_fx.concepts.relevance_flow`.

    The column of a node is the length of the longest path to it. Red edges carry positive relevance, blue edges
    negative; their width grows with its magnitude. Nodes have the same colours.

    Args:
        graph: the graph; prune a large one.
        ax: axes to draw on; None for a new figure.
        amounts: whether nodes show their relevance below their name.

    Raises:
        MissingExtraError: if networkx or matplotlib is not installed.
    """
    nx: Any = require("networkx", "concepts")
    columns = list(nx.topological_generations(graph))
    if ax is None:
        tallest = max(len(column) for column in columns)
        size = (max(6.0, 1.9 * len(columns)), max(3.5, 0.9 * tallest + 1.5))
        ax = new_figure(*size, extra="concepts").add_subplot()
    drawn = nx.DiGraph()
    for layer, column in enumerate(columns):
        drawn.add_nodes_from(column, layer=layer)
    drawn.add_edges_from(graph.edges)
    positions = nx.multipartite_layout(drawn, subset_key="layer")
    for index, column in enumerate(columns):  # every other column is shifted, so that labels do not overlap
        for node in column:
            positions[node] = positions[node] + [0, 0.08 * (-1) ** index]
    flows = {(a, b): w for a, b, w in graph.edges(data="weight")}
    largest_flow = max(map(abs, flows.values()), default=0.0) or 1.0
    relevances = {n: r for n, r in graph.nodes(data="relevance")}
    largest = max(map(abs, relevances.values()), default=0.0) or 1.0
    nx.draw_networkx_nodes(
        drawn, positions, ax=ax, node_size=320, edgecolors=ink("quiet"),
        node_color=[_shade(relevances[n] / largest) for n in drawn],
    )  # fmt: skip
    nx.draw_networkx_edges(
        drawn, positions, ax=ax, node_size=320, edgelist=list(flows), connectionstyle="arc3,rad=0.18",
        edge_color=[_shade(0.25 * (1 if w >= 0 else -1) + 0.75 * w / largest_flow) for w in flows.values()],
        width=[0.6 + 3.4 * abs(w) / largest_flow for w in flows.values()],
    )  # fmt: skip
    for node, (x, y) in positions.items():
        text = f"{node}\n{relevances[node]:+.3g}" if amounts else node
        label = ax.annotate(
            text, (x, y), xytext=(0, -14), textcoords="offset points", ha="center", va="top", fontsize=7, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
        literal(label)
    ax.margins(0.12)
    ax.set_axis_off()
    return ax.figure  # type: ignore[return-value]


def _shade(share: float) -> tuple[float, ...]:
    return fractions(background(share))
