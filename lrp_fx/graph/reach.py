"""Dependence on the inputs of a graph."""

from __future__ import annotations

from torch import fx
from torch.fx import Node


def from_inputs(graph: fx.Graph) -> set[Node]:
    """The placeholders and every node that depends on one; all other nodes are constants."""
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached
