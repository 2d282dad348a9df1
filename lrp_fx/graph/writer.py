"""Adds nodes to a graph, each with its captured (fake) value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx import Node


class NodeWriter:
    """Adds nodes that replace ``origin``: they get a captured value, and its module path and source line."""

    def __init__(self, graph: fx.Graph, origin: Node) -> None:
        self.graph, self.origin = graph, origin

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of ``target`` at the insertion point of the graph."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {k: v for k, v in self.origin.meta.items() if k in ("nn_module_stack", "stack_trace")}
        values, keywords = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with _fake(self.origin):
            node.meta["val"] = target(*values, **keywords)
        return node


@contextlib.contextmanager
def _fake(node: Node) -> Iterator[None]:
    """The fake mode of the capture; without one (values are real tensors), no gradients."""
    mode = detect_fake_mode([v for v in (node.meta["val"],) if isinstance(v, Tensor)])
    with mode if mode is not None else torch.no_grad():
        yield
