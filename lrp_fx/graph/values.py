"""Values of nodes of a graph, computed on demand from those that are given."""

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
    """Node -> its value; what is not given is computed when it is asked for, and kept.

    Args:
        given: values of nodes.
        attribute: the value of an attribute of the graph's module, by path; none where the graph reads none.
    """

    def __init__(self, values: Mapping[Node, Any], attribute: Callable[[str], Any] | None = None) -> None:
        super().__init__(values)
        self.attribute = attribute

    @classmethod
    def of(cls, graph_module: fx.GraphModule, values: Mapping[Node, Any]) -> Values:
        """Values in a graph with the attributes of its module."""
        return cls(values, lambda path: operator.attrgetter(path)(graph_module))

    def run(self, node: Node, args: Any, kwargs: Any) -> Any:
        """What an operator makes of values."""
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
