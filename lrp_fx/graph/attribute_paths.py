"""Attributes of graphs that are named like keywords of Python: ``self.in.weight`` is no code, ``getattr`` reads it."""

from __future__ import annotations

import keyword
import operator
from typing import Any

import torch
from torch import fx
from torch.fx import Node


class _Part(str):
    """A name that generated code must not write as it is."""

    def isidentifier(self) -> bool:
        return False


class AttributePath(str):
    """The path of an attribute with keywords in it, of which code generation reads every part as it can be read."""

    def split(self, *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """The parts, as ``str.split`` gives them."""
        return [_Part(part) if keyword.iskeyword(part) else part for part in super().split(*args, **kwargs)]


def readable(path: str) -> str:
    """``path`` itself, or in a form that code can be generated for."""
    return AttributePath(path) if any(keyword.iskeyword(part) for part in path.split(".")) else path


def attribute(owner: torch.nn.Module, node: Node) -> Any:
    """What a node that reads an attribute of its module reads."""
    return operator.attrgetter(str(node.target))(owner)


def module_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """``program.module()`` without guards, of a program whose attributes may be named like keywords."""
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.target, str):
            spec.target = readable(spec.target)
    return program.module(check_guards=False)  # type: ignore[return-value]
