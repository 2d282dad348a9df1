"""Copies of graphs that keep their code generation."""

from __future__ import annotations

from torch import fx
from torch.fx import Node


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[Node, Node]]:
    """A copy of ``graph`` with its code generation, and the map from its nodes to the copies."""
    new = fx.Graph()
    mapping: dict[Node, Node] = {}
    output = new.graph_copy(graph, mapping)
    new.output(output)
    new._codegen = graph._codegen
    return new, mapping
