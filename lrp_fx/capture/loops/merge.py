"""Two graphs of one model, captured at two lengths: numbers that differ between them follow from the length."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.loop import CapturedLoop


class NotAlike(Exception):
    """Two graphs differ in more than sizes."""


@dataclass
class Merge:
    """Merges a graph into another one of the same model.

    Args:
        one: the graph that is changed.
        other: the graph for an input that is one step longer.
        length: number of steps of the input of ``one``.
        source: placeholder of ``one`` with this length, and its axis.
    """

    one: fx.GraphModule
    other: fx.GraphModule
    length: int
    source: tuple[Node, int]
    twins: dict[Node, Node] = field(default_factory=dict)  # node of ``other`` -> node of ``one``
    sizes: dict[tuple[int, int], Node] = field(default_factory=dict)

    def run(self) -> None:
        """Let sizes in ``one`` follow from the length.

        Raises:
            NotAlike: if the graphs differ in another way.
        """
        nodes, others = list(self.one.graph.nodes), list(self.other.graph.nodes)
        if len(nodes) != len(others):
            raise NotAlike("the lengths have other operators")
        for node, other in zip(nodes, others, strict=True):
            self._compare(node, other)
            self.twins[other] = node
            with self.one.graph.inserting_before(node):
                node.args = self._pair(node.args, other.args, self._size)
                node.kwargs = self._pair(dict(node.kwargs), dict(other.kwargs), self._size)

    def _compare(self, node: Node, other: Node) -> None:
        if node.op != other.op:
            raise NotAlike(f"{node} and {other}")
        if node.op == "get_attr":
            values = attribute(self.one, node), attribute(self.other, other)
            same = values[0] is values[1] or (
                all(isinstance(v, Tensor) and not v.is_meta for v in values)
                and values[0].shape == values[1].shape
                and torch.equal(*values)
            )
        elif isinstance(node.target, CapturedLoop) and isinstance(other.target, CapturedLoop):
            bodies = Merge(node.target.body, other.target.body, self.length, self.source)
            bodies.run()
            same = not bodies.sizes and node.target.outputs == other.target.outputs
        else:
            same = node.op == "placeholder" or node.target == other.target
        if not same:
            raise NotAlike(f"{node} and {other}")

    def _pair(self, one: Any, other: Any, size: Callable[[int, int], Any]) -> Any:
        """``one``, with a size in place of each integer that differs in ``other``."""
        if isinstance(one, Node) and isinstance(other, Node) and self.twins.get(other) is one:
            return one
        if type(one) is not type(other) or isinstance(one, Node):
            raise NotAlike(f"{one} and {other}")
        if isinstance(one, (list, tuple)):
            if len(one) != len(other):
                raise NotAlike(f"{one} and {other}")
            return type(one)(self._pair(a, b, size) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict):
            if [*one] != [*other]:
                raise NotAlike(f"{one} and {other}")
            return {key: self._pair(value, other[key], size) for key, value in one.items()}
        if isinstance(one, slice):
            bounds = [(one.start, other.start), (one.stop, other.stop), (one.step, other.step)]
            return slice(*(self._pair(a, b, size) for a, b in bounds))
        if one == other or (one != one and other != other):
            return one
        if type(one) is not int:
            raise NotAlike(f"{one} and {other}")
        return size(one, other - one)

    def _size(self, here: int, pace: int) -> Node:
        """pace * length + offset, as a node."""
        offset = here - pace * self.length
        if (pace, offset) not in self.sizes:
            placeholder, axis = self.source
            last = self.one.graph.find_nodes(op="placeholder")[-1]
            with self.one.graph.inserting_after(last):
                node = self.one.graph.call_function(torch.ops.aten.sym_size.int, (placeholder, axis))
            for function, number, neutral in ((operator.mul, pace, 1), (operator.add, offset, 0)):
                if number != neutral:
                    with self.one.graph.inserting_after(node):
                        node = self.one.graph.call_function(function, (node, number))
            self.sizes[pace, offset] = node
        return self.sizes[pace, offset]
