"""Checks of the names in a file, so that reading it runs no code: identifiers, operators, output containers.

Names of a graph become Python source when it is compiled, and operators are looked up by name, so both are checked
first. Allowed operators are those of PyTorch that only compute tensors, those of this package, and those that the op
table declares. Allowed containers are those whose description needs no import.
"""

from __future__ import annotations

import json
import keyword
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from lrp_fx.errors import UnsafeFileError
from lrp_fx.operators.table import is_declared

_NAMESPACES = ("aten", "prims", "lrp_fx")  #: namespaces whose operators compute tensors
_CHECKS = ("aten::_assert", "aten::sym_constrain_range")  #: assertions: no result, no effect
_OUTSIDE = {"aten::from_file"}  #: access files
_BY_TORCH = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format))
}


def identifier(name: Any) -> str:
    """``name``, if it is a valid name of a Python variable.

    Raises:
        UnsafeFileError: if it is not.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or _reserved(name):
        raise UnsafeFileError(f"{_short(name)} is no valid name of a variable")
    return name


def attribute(path: Any) -> str:
    """``path``, if it is a valid dotted path of a parameter, buffer or module.

    Raises:
        UnsafeFileError: if it is not, or passes a ``__dunder__`` attribute.
    """
    names = path.split(".") if isinstance(path, str) else [""]
    if not all((name.isidentifier() or name.isdigit()) and not _reserved(name) for name in names):
        raise UnsafeFileError(f"{_short(path)} is no valid path of a parameter or buffer")
    return path


def _reserved(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _short(value: Any) -> str:
    return f"{str(value)[:80]!r}"


def harmless(operator: OpOverload) -> bool:
    """Whether a file may name this operator."""
    schema = operator._schema
    if is_declared(str(operator.overloadpacket)) or is_declared(str(operator)):
        return True
    if schema.name.partition("::")[0] not in _NAMESPACES or schema.name in _OUTSIDE or schema.is_mutable:
        return False
    if not schema.returns and not schema.name.startswith(_CHECKS):
        return False
    try:  # operators of TorchScript alone (files, strings, lists) are not in the dispatcher
        torch._C._dispatch_find_schema_or_throw(schema.name, schema.overload_name)
    except RuntimeError:
        return False
    return True


def operator(name: Any, overload: Any) -> OpOverload:
    """The operator of this name.

    Raises:
        UnsafeFileError: if a file may not name it, or there is no such operator.
    """
    space, _, packet = name.partition("::")
    for part in (space, packet, *([overload] if overload else [])):
        if not part.isidentifier():
            raise UnsafeFileError(f"{_short(name)} is no valid name of an operator")
    overloaded = getattr(getattr(getattr(torch.ops, space), packet, None), overload or "default", None)
    if not isinstance(overloaded, OpOverload):
        raise UnsafeFileError(f"there is no operator {_short(name)}")
    if not harmless(overloaded):
        raise UnsafeFileError(f"{_short(name)} has side effects, or is not declared (register_op)")
    return overloaded


def by_torch(name: Any) -> Any:
    """The dtype, layout or memory format of PyTorch with this name.

    Raises:
        UnsafeFileError: if there is none.
    """
    if name not in _BY_TORCH:
        raise UnsafeFileError(f"torch.{_short(name)} is no dtype, layout or memory format")
    return _BY_TORCH[name]


def needs_import(described: Any) -> bool:
    """Whether the description of a container (``pytree.treespec_dumps``) names code: a default factory, an enum.

    Descriptions of inner containers are strings in it.
    """
    if isinstance(described, dict):
        return any(map(needs_import, (*described, *described.values())))
    if isinstance(described, list):
        return any(map(needs_import, described))
    if not isinstance(described, str):
        return False
    if "defaultdict" in described or described in ("__enum__", "default_factory_module"):
        return True
    try:
        return needs_import(json.loads(described))
    except ValueError:
        return False


def structure(text: Any) -> pytree.TreeSpec:
    """The structure described by ``pytree.treespec_dumps``.

    Raises:
        UnsafeFileError: if the description names code to import, or is no text.
    """
    if not isinstance(text, str) or needs_import(text):
        raise UnsafeFileError("the structure of its outputs names code to import, or is no text")
    return pytree.treespec_loads(text)
