"""Values of graph nodes, computed on demand from the values of some of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value, however nested, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class Values(dict[Node, Any]):
    """Node -> its value; a missing value is computed on access and stored.

    Args:
        values: values of some nodes.
        attribute: reads an attribute of the graph's module by path; None if the graph has no ``get_attr`` nodes.
    """

    def __init__(self, values: Mapping[Node, Any], attribute: Callable[[str], Any] | None = None) -> None:
        super().__init__(values)
        self.attribute = attribute

    @classmethod
    def of(cls, graph_module: fx.GraphModule, values: Mapping[Node, Any]) -> Values:
        """Values in the graph of a module."""
        return cls(values, lambda path: operator.attrgetter(path)(graph_module))

    def run(self, node: Node, args: Any, kwargs: Any) -> Any:
        """The result of the node's operator on values."""
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def __missing__(self, node: Node) -> Any:
        if node.op == "get_attr":
            assert self.attribute is not None
            value = self.attribute(str(node.target))
        else:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.__getitem__)  # type: ignore[misc]
            value = self.run(node, args, kwargs)
        self[node] = value
        return value
