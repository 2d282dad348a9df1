"""A model's graph as a page: nodes with roles and rules, in layers, with a search; and tables of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from lrp_fx.extras import require
from lrp_fx.viz.layered_layout import layout
from lrp_fx.viz.viewer.page import whole_page

_SPAN = 12  #: an edge over more layers is one curve, which does not run around nodes


class StructureNode(TypedDict):
    """A node of a model's graph.

    ``kind`` is "source" (relevance is collected here), "rule", "stop" (relevance ends here) or "constant"; ``source``
    is the line of the model's code, ``takes`` the names of operands.
    """

    name: str
    op: str
    module: str
    role: str
    rule: str
    kind: str
    source: str
    takes: Sequence[str]


def structure_page(
    nodes: Sequence[StructureNode], title: str, caption: str, rows: Sequence[Any], lines: Sequence[str]
) -> str:
    """The page: one HTML file without network.

    Args:
        nodes: all nodes, operands before the nodes that take them.
        title: heading.
        caption: a sentence below it.
        rows: groups of nodes for a table, with ``role``, ``rule``, ``op`` and ``count``.
        lines: lines below that table.

    Raises:
        MissingExtraError: if jinja2, networkx, fast-sugiyama or scipy is not installed.
    """
    numbers = {node["name"]: number for number, node in enumerate(nodes)}
    networkx: Any = require("networkx", "layout")
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from((numbers[t], n) for n, node in enumerate(nodes) for t in node["takes"] if t in numbers)
    placed = layout(graph, _SPAN)
    places = [placed.places[number] for number in range(len(nodes))]
    drawn = [
        {**node, "takes": [], "x": layer, "y": round(height, 2)}
        for node, (layer, height) in zip(nodes, places, strict=True)
    ]
    edges = [(a, b, [(x, round(y, 2)) for x, y in way]) for (a, b), way in placed.ways.items()]
    modules: dict[str, list[tuple[int, StructureNode]]] = {}
    for number, node in enumerate(nodes):
        modules.setdefault(node["module"], []).append((number, node))
    data = {"nodes": drawn, "edges": edges, "label": f"{title}: arrow keys follow edges, plus and minus zoom"}
    return whole_page(
        "structure.html.jinja", "structure.js", data, title=title, caption=caption, rows=rows, lines=lines,
        modules=modules,
    )  # fmt: skip
