"""Copies of graphs: a whole graph, and a graph inlined into another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.attribute_paths import attribute


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[Node, Node]]:
    """A copy of ``graph`` with its code generation, and the map from its nodes to the copies."""
    new = fx.Graph()
    mapping: dict[Node, Node] = {}
    output = new.graph_copy(graph, mapping)
    new.output(output)
    new._codegen = graph._codegen
    return new, mapping


def splice(
    owner: fx.GraphModule, body: fx.GraphModule, inputs: Sequence[Any], before: Node
) -> tuple[Any, dict[Node, Node]]:
    """Inline a graph into another one, in front of a node.

    Args:
        owner: the module whose graph is extended; attributes of ``body`` become attributes of it.
        body: the graph to copy.
        inputs: values for the placeholders of ``body``: nodes of ``owner``, or constants.
        before: the node of ``owner`` in front of which the copies go.

    Returns:
        The output of ``body`` in terms of nodes of ``owner``; the map from the nodes of ``body`` to their copies.
    """
    placeholders = body.graph.find_nodes(op="placeholder")
    values: dict[Node, Any] = dict(zip(placeholders, inputs, strict=True))
    with owner.graph.inserting_before(before):
        result = owner.graph.graph_copy(body.graph, values)
    copies = {node: copy for node, copy in values.items() if node.op != "placeholder"}
    for node, copy in copies.items():
        if node.op == "get_attr":
            copy.target = _adopted(owner, before.name, attribute(body, node))
    return result, copies


def _adopted(owner: fx.GraphModule, place: str, constant: Any) -> str:
    """Register a constant at ``owner`` under a free name, and return that name."""
    count = 0
    while hasattr(owner, name := f"_constant_of_{place}_{count}"):
        count += 1
    if isinstance(constant, Tensor):
        owner.register_buffer(name, constant, persistent=False)
    else:
        setattr(owner, name, constant)
    return name
