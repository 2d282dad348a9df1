"""Where a node of a captured graph came from: the module, and the line of the user's source."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch.fx import Node

_LOCATED = re.compile(
    r"node '(?P<node>[^']*)' \(op [^)]*\) in module '(?P<module>[^']*)', (?:(?P<source>.+?:\d+)(?:, in [^:]*)?: )?"
)


@dataclass(frozen=True)
class Place:
    """A place in a captured graph.

    Attributes:
        node: name of the node.
        module: path of the module ("<root>" for the model itself).
        source: ``file:line`` of the user's source; "" where the capture did not record it.
    """

    node: str = ""
    module: str = ""
    source: str = ""


def module_path(node: Node) -> str:
    """Path of the innermost module whose forward created ``node`` ("" for the root), from its capture metadata."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "")


def source_line(node: Node) -> str:
    """The source line that created ``node``, ``file:line: code``: the innermost frame of its recorded stack."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(trace) < 2:
        return "<no source recorded>"
    where, code = trace[-2].strip(), trace[-1].strip()
    return f"{where.replace('File ', '').replace(', line ', ':').replace(chr(34), '')}: {code}"


def locate(node: Node) -> str:
    """One line naming node, op, module path and source, for error messages and reports."""
    path = module_path(node) or "<root>"
    return f"node '{node.name}' (op {node.target}) in module '{path}', {source_line(node)}"


def located(message: str) -> Place:
    """The first place that a message names in the words of :func:`locate`; an empty one where it names none."""
    match = _LOCATED.search(message)
    return Place() if match is None else Place(match["node"], match["module"], match["source"] or "")
