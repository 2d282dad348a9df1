"""Graph modules that generate their Python code at the first call, as most graphs are only analysed or copied."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule


def lazy_module(owner: Any, graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """A graph module with the attributes of ``owner``: a module, or a dict of attributes by path."""
    return _LazyGraphModule(owner, graph, class_name)


def with_code(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same module with its code generated, for callers that inspect its signature or trace it."""
    _LazyGraphModule.force_recompile(graph_module)
    return graph_module
