"""Where a node of a captured graph came from: the module, and the line of the user's source."""

from __future__ import annotations

from torch.fx import Node


def module_path(node: Node) -> str:
    """Path of the innermost module whose forward created ``node`` ("" for the root), from its capture metadata."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "")


def source_line(node: Node) -> str:
    """The user's source line that created ``node``: ``file:line: code``, outermost library frames dropped."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(trace) < 2:
        return "<no source recorded>"
    where, code = trace[-2].strip(), trace[-1].strip()
    return f"{where.replace('File ', '').replace(', line ', ':').replace(chr(34), '')}: {code}"


def locate(node: Node) -> str:
    """One line naming node, op, module path and source, for error messages and reports."""
    path = module_path(node) or "<root>"
    return f"node '{node.name}' (op {node.target}) in module '{path}', {source_line(node)}"
