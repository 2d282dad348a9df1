"""Circuits in the viewer: graphs of relevance flow, in layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrp_fx.errors import InputError
from lrp_fx.viz.layered_layout import layout
from lrp_fx.viz.pages import write_page
from lrp_fx.viz.viewer import encode
from lrp_fx.viz.viewer.page import viewer_page
from lrp_fx.viz.viewer.schema import View

if TYPE_CHECKING:
    import networkx

_ROUNDING = 1e-6  #: missing share of the target from which on a graph counts as pruned


def view_circuit(
    *graphs: networkx.DiGraph,
    path: str | Path = "circuit.html",
    title: str = "A circuit",
    names: Sequence[str] | None = None,
) -> Path:
    """Write an interactive page of graphs of :func:`lrp_fx.concepts.relevance_flow`: one HTML file without network.

    Nodes are drawn in layers, inputs on the left. The page can be zoomed and dragged; arrow keys follow the strongest
    edges.

    Args:
        graphs: one graph, or several side by side.
        path: file to write.
        title: heading of the page.
        names: names of the graphs; None for their rule sets.

    Raises:
        InputError: without graphs, and for another number of names than graphs.
        MissingExtraError: if networkx, fast-sugiyama, scipy or jinja2 is not installed.
    """
    names = [str(graph.graph.get("rules", "circuit")) for graph in graphs] if names is None else names
    if not graphs or len(names) != len(graphs):
        raise InputError(f"{len(names)} names for {len(graphs)} graphs: give at least one graph, and a name for each")
    views = [circuit_data(graph, name) for graph, name in zip(graphs, names, strict=True)]
    return write_page(path, viewer_page(views, title))


def circuit_data(graph: networkx.DiGraph, name: str) -> View:
    """A graph as plain data. Its ledger has relevance absorbed by nodes, pruned relevance, and the inputs'."""
    facts = graph.nodes
    target = next((n for n in graph if facts[n].get("kind") == "target"), None)
    value = sum(facts[n]["relevance"] for n in graph if n == target)
    amounts = {
        "absorbed": sum(facts[n].get("absorbed", 0.0) for n in graph),
        "input": sum(facts[n]["relevance"] for n in graph if facts[n].get("kind") == "input"),
    }
    left = value - sum(amounts.values())
    pruned = {"pruned": left} if abs(left) > _ROUNDING * max(abs(value), *map(abs, amounts.values())) else {}
    placed = layout(graph)
    places = placed.places
    numbers = {node: number for number, node in enumerate(graph)}
    return {
        "name": name,
        "facts": [("rules", str(graph.graph["rules"]))] if "rules" in graph.graph else [],
        "samples": [
            {
                "name": "1",
                "targets": [{"name": str(target or "target"), "value": encode.finite(float(value))}],
                "inputs": [
                    {
                        "kind": "graph",
                        "name": "relevance flow",
                        "nodes": [{"name": str(n), "x": places[n][0], "y": places[n][1]} for n in graph],
                        "edges": [(numbers[a], numbers[b], float(w)) for a, b, w in graph.edges(data="weight")],
                        "ways": [placed.ways[edge] for edge in graph.edges],
                        "relevance": encode.pack(np.array([[facts[n]["relevance"] for n in graph]])),
                    }
                ],
                "matrices": [],
                "notes": [],
                "ledger": list({**pruned, **amounts}.items()),
                "no_ledger": "",
                "caption": "Nodes absorb the relevance that arrives at them and is not passed on.",
            }
        ],
    }
