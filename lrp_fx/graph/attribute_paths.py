"""Attribute paths that contain Python keywords: ``self.in.weight`` is a syntax error, ``getattr`` reads it."""

from __future__ import annotations

import keyword
import operator
from typing import Any

import torch
from torch import fx
from torch.fx import Node


class _Part(str):
    """A keyword in a path: generated code must read it by ``getattr``."""

    def isidentifier(self) -> bool:
        return False


class AttributePath(str):
    """An attribute path for code generation, which reads keywords by ``getattr`` and all other parts by a dot."""

    def split(self, *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """As ``str.split``; keywords are no identifiers."""
        return [_Part(part) if keyword.iskeyword(part) else part for part in super().split(*args, **kwargs)]


def readable(path: str) -> str:
    """``path``, as an :class:`AttributePath` if it contains a keyword."""
    return AttributePath(path) if any(keyword.iskeyword(part) for part in path.split(".")) else path


def attribute(owner: torch.nn.Module, node: Node) -> Any:
    """The value of a ``get_attr`` node of ``owner``."""
    return operator.attrgetter(str(node.target))(owner)


def module_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """``program.module()`` without its guards; attributes may be named like keywords."""
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.target, str):
            spec.target = readable(spec.target)
    return program.module(check_guards=False)  # type: ignore[return-value]
