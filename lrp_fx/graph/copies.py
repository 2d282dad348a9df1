"""Copies of graphs: of a whole one, with its code generation, and of one inside of another."""

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
    """Copy a graph into another one, in front of a node.

    Args:
        owner: whose graph is added to; what ``body`` reads of its own becomes an attribute of the owner's.
        body: the graph that is copied.
        inputs: what its placeholders stand for: nodes of the owner's, or constants.
        before: a node of the owner's.

    Returns:
        What ``body`` returns, in nodes of the owner's; the map from its nodes to the copies.
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
    """A name of the owner's under which it holds a constant from now on."""
    count = 0
    while hasattr(owner, name := f"_constant_of_{place}_{count}"):
        count += 1
    if isinstance(constant, Tensor):
        owner.register_buffer(name, constant, persistent=False)
    else:
        setattr(owner, name, constant)
    return name
