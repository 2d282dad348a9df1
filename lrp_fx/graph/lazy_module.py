"""Graph modules that generate their Python code at the first call, as most graphs are only analysed or copied."""

from __future__ import annotations

import threading
from typing import Any

from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule

#: threads that generate the code of one graph at once would mix its names
_GENERATING = threading.RLock()


class LazyModule(_LazyGraphModule):
    """A graph module whose first call generates its code, in one thread at a time."""

    def real_recompile(self) -> None:
        """Generate the code unless another thread has done so by now."""
        with _GENERATING:
            super().real_recompile()


def lazy_module(owner: Any, graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """A graph module with the attributes of ``owner``: a module, or a dict of attributes by path."""
    return LazyModule(owner, graph, class_name)


def with_code(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same module with its code generated, for callers that inspect its signature or trace it."""
    LazyModule.force_recompile(graph_module)
    return graph_module
