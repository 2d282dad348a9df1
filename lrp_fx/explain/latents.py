"""Module outputs in a captured graph, found from the module stack that capture recorded at every node."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch.fx import Graph, Node

from lrp_fx.analysis.operands import is_float
from lrp_fx.errors import LatentError


def module_outputs(graph: Graph) -> dict[str, Node]:
    """Module path -> the floating tensor node that its forward returned (the last one that is used outside of it)."""
    outputs: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor) or not is_float(node):
            continue
        for path in _paths(node):
            if path and any(path not in _paths(user) for user in node.users):
                outputs[path] = node
    return outputs


def _paths(node: Node) -> set[str]:
    return {path for path, _ in (node.meta.get("nn_module_stack") or {}).values()}


def find_latents(graph: Graph, patterns: Iterable[str]) -> dict[str, Node]:
    """Nodes of the modules whose path is, or matches, one of ``patterns``.

    Raises:
        LatentError: for a pattern that matches no module with an output in the graph.
    """
    outputs = module_outputs(graph)
    found: dict[str, Node] = {}
    for pattern in patterns:
        matches = {path: node for path, node in outputs.items() if fnmatchcase(path, pattern)}
        if not matches:
            near = get_close_matches(pattern, outputs, n=3, cutoff=0.3)
            raise LatentError(
                f"at={pattern!r} matches no module with an output in the captured graph; "
                f"close: {near or sorted(outputs)[:5]}"
            )
        found |= matches
    return found
