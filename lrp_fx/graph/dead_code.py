"""Nodes that nobody reads."""

from __future__ import annotations

from torch import fx


def drop_dead(graph: fx.Graph) -> None:
    """Remove the nodes that nobody reads and that have no effect, as ``Graph.eliminate_dead_code`` does.

    That function checks the whole graph before, and asks every node for its effects, which takes ten times as long.
    """
    owner = graph.owning_module
    if owner is not None and any(isinstance(child, fx.GraphModule) for child in owner.children()):
        graph.eliminate_dead_code()  # in those graphs, too
        return
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)
