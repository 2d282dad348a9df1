"""Dependence: which nodes depend on inputs, and on which nodes a node depends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree


def from_inputs(graph: fx.Graph) -> set[Node]:
    """The placeholders and every node that depends on one; all other nodes are constants."""
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def is_floating(node: Node) -> bool:
    """Whether the value of a node has a floating-point or complex tensor."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in leaves)


def _operands(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def upstream(nodes: Iterable[Node], operands: Callable[[Node], Iterable[Node]] = _operands) -> Iterator[Node]:
    """Nodes and everything that they depend on, each once, depth first.

    Args:
        nodes: where the walk starts.
        operands: the operands of a node to which the walk goes on; all by default.
    """
    stack, seen = list(nodes), set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += operands(node)
