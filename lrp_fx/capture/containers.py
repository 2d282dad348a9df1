"""Objects that pytree does not know, as inputs and outputs: their tensors are leaves, everything else is structure.

A cache, a batch of graphs, a dataclass or any plain object is taken apart as ``copy`` and ``pickle`` do it (attributes,
slots, items), so that no tensor in it is missed. Two objects have the same structure if all their other values are
equal. A run gets a copy of the object with the tensors of that run.
"""

from __future__ import annotations

import collections
import copy
import enum
import hashlib
import pathlib
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lrp_fx.errors import InputError

_BY_VALUE = (type(None), bool, int, str, bytes, type(...), type(NotImplemented))
_BY_TEXT = (float, complex, range, slice, pathlib.PurePath, np.generic)  # equal text: NaN is NaN, 0.0 is not -0.0
#: described by identity and shared with the copy
_BY_IDENTITY = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, enum.Enum, nn.Module, np.dtype, np.ufunc),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.SymInt, torch.SymFloat, torch.SymBool),
)
_HOLD_DATA = (collections.UserDict, collections.UserList)


@dataclass(frozen=True)
class Structure:
    """An object without its tensors.

    Attributes:
        kind: name of its class.
        paths: path of each tensor, as Python code behind the object's name.
        description: all its other contents, by value.
        template: a copy of it with meta tensors.
        empties: these meta tensors.
    """

    kind: str
    paths: tuple[str, ...]
    description: Any = field(repr=False)
    template: Any = field(compare=False, repr=False)
    empties: tuple[Tensor, ...] = field(compare=False, repr=False)

    def around(self, tensors: list[Any]) -> Any:
        """A new object of this structure with ``tensors``."""
        memo = {id(old): new for old, new in zip(self.empties, tensors, strict=True)}
        return copy.deepcopy(self.template, memo | _shared(self.description))


@dataclass(frozen=True)
class Opened:
    """An object that was taken apart: a node of pytree."""

    structure: Structure
    tensors: tuple[Any, ...]


class Place(pytree.MappingKey):  # type: ignore[type-arg]
    """The path of a tensor in an object."""

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True)
class Returned:
    """Node type for outputs: unflattening it creates the object itself, in place of an :class:`Opened`."""


def _flatten(opened: Opened) -> tuple[list[Any], Structure]:
    return list(opened.tensors), opened.structure


def _flatten_with_keys(opened: Opened) -> tuple[list[Any], Structure]:
    return [(Place(p), t) for p, t in zip(opened.structure.paths, opened.tensors, strict=True)], opened.structure


pytree.register_pytree_node(
    Opened,
    _flatten,
    lambda tensors, structure: Opened(structure, tuple(tensors)),
    flatten_with_keys_fn=_flatten_with_keys,
)
pytree.register_pytree_node(Returned, lambda _: ([], None), lambda tensors, structure: structure.around(list(tensors)))


def opened(tree: Any) -> Any:
    """``tree`` with every object that pytree does not know as an :class:`Opened`; the same tree if there is none.

    Raises:
        InputError: if an object cannot be taken apart.
    """
    entries = pytree.tree_flatten_with_path(tree)[0]
    if all(is_plain(leaf) for _, leaf in entries):
        return tree
    return pytree.tree_map_with_path(lambda path, leaf: leaf if is_plain(leaf) else _open(leaf, path), tree)


def returned(tree: Any) -> Any:
    """As :func:`opened`, for outputs: objects that cannot be taken apart stay leaves."""

    def take_apart(leaf: Any) -> Any:
        try:
            return leaf if is_plain(leaf) else _open(leaf, ())
        except InputError:
            return leaf

    return pytree.tree_map(take_apart, tree)


def closed(tree: Any) -> Any:
    """``tree`` with a new object in place of every :class:`Opened`."""
    if not structures(tree):
        return tree
    return pytree.tree_map(
        lambda leaf: leaf.structure.around(list(leaf.tensors)) if isinstance(leaf, Opened) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, Opened),
    )


def listed(tree: Any) -> Any:
    """``tree`` with a list in place of every :class:`Opened`, as in the specifications of export."""
    if not structures(tree):
        return tree
    return pytree.tree_map(
        lambda leaf: list(leaf.tensors) if isinstance(leaf, Opened) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, Opened),
    )


def closing(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure of an output, with :class:`Returned` in place of :class:`Opened`."""
    children = [closing(child) for child in spec.children()]
    kind = Returned if spec.type is Opened else spec.type
    return spec if spec.is_leaf() else pytree.TreeSpec(kind, spec.context, children)


def structures(tree: Any) -> tuple[Structure, ...]:
    """The structures of all :class:`Opened` in ``tree``."""
    return tuple(leaf.structure for leaf in _nodes(tree) if isinstance(leaf, Opened))


def _nodes(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, Opened))


_LISTS = ("named_parameters", "named_buffers")  #: methods by which export names a model's tensors


def standing_in(model: nn.Module, tree: Any) -> nn.Module:
    """The model, or a stand-in with the same state: if ``tree`` has :class:`Opened` objects, it puts them together; if
    the model lists its parameters or buffers under names of its own, it lists them under their paths, as export does.
    """
    kind = type(model)
    methods = {name: original for name in _LISTS if getattr(kind, name) is not (original := getattr(nn.Module, name))}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.__call__(self, *closed(args), **closed(kwargs))

    if structures(tree):
        methods["__call__"] = call
    if not methods:
        return model
    twin: nn.Module = object.__new__(type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__}))
    object.__setattr__(twin, "__dict__", vars(model))
    return twin


def is_plain(leaf: Any) -> bool:
    """Whether a leaf is a tensor or a plain value."""
    return isinstance(leaf, (Tensor, *_BY_VALUE, *_BY_TEXT, *_BY_IDENTITY)) or _is_array(leaf)


def by_value(leaf: Any) -> Any:
    """A hashable key of a plain constant."""
    if isinstance(leaf, _BY_TEXT):
        return (type(leaf), repr(leaf))
    if _is_array(leaf):
        return (leaf.dtype.str, leaf.shape, hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest())
    return (type(leaf), leaf)


def _is_array(leaf: Any) -> bool:
    return type(leaf) is np.ndarray and not leaf.dtype.hasobject


def _open(value: Any, path: Any) -> Opened:
    name = "".join(map(str, path[1:])) or "the output"
    walk = _Walk()
    try:
        description = walk.describe(value, "")
        empties = tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in walk.tensors)
        memo = {id(t): h for t, h in zip(walk.tensors, empties, strict=True)}
        with _NoOtherTensor():
            template = copy.deepcopy(value, memo | _shared(description))
    except _Closed as reason:
        raise _refused(name, value, str(reason)) from reason
    except Exception as error:  # an object that cannot be copied may raise anything
        raise _refused(name, value, f"{type(error).__name__}: {error}") from error
    paths = tuple(_short(value, p) for p in walk.paths)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return Opened(Structure(kind, paths, description, template, empties), tuple(walk.tensors))


def _refused(name: str, value: Any, reason: str) -> InputError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return InputError(
        f"input {name} is a {kind}, which cannot be taken apart into tensors and plain values: {reason}.\n"
        f"Remedy: register it with PyTorch, torch.utils._pytree.register_pytree_node({type(value).__name__}, "
        "flatten, unflatten), or pass its tensors as separate arguments."
    )


def _short(value: Any, path: str) -> str:
    """``path``, shortened to ``.x`` if a tensor deep inside is also the object's attribute ``x``."""
    key = path.rpartition("[")[2].removesuffix("]").strip("'") if path.endswith("']") else path.rpartition(".")[2]
    if isinstance(value, _HOLD_DATA) or path == f".{key}" or not key.isidentifier():
        return path
    attribute = vars(value).get(key) if hasattr(value, "__dict__") else None
    return f".{key}" if isinstance(attribute, Tensor) or isinstance(getattr(value, key, None), Tensor) else path


class _Closed(Exception):
    """A part of an object has no description."""


class _NoOtherTensor(TorchFunctionMode):
    """In this context copying a tensor is an error: all tensors of the object should be in the memo."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__deepcopy__":
            raise _Closed("it contains a tensor that only copying finds")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Shared:
    """In a description: an object that is shared with copies."""

    value: Any


def _shared(description: Any) -> dict[int, Any]:
    """id -> object, of the objects in a description that copies share."""
    if isinstance(description, _Shared):
        return {id(description.value): description.value}
    if isinstance(description, (tuple, frozenset)):
        return {key: value for part in description for key, value in _shared(part).items()}
    return {}


class _Walk:
    """Describes an object with all its contents.

    Attributes:
        tensors: the tensors in it, each once.
        paths: the first path of each.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.paths: list[str] = []
        self._met: dict[int, tuple[int, Any]] = {}  # keeps the objects alive, so that ids stay unique

    def describe(self, value: Any, path: str) -> Any:
        """A hashable description of ``value`` at ``path``."""
        if isinstance(value, _BY_IDENTITY):
            return _Shared(value)
        if type(value) in _BY_VALUE or isinstance(value, _BY_TEXT) or _is_array(value):
            return by_value(value)
        if id(value) in self._met:
            return ("met", self._met[id(value)][0])
        self._met[id(value)] = (len(self._met), value)
        if isinstance(value, Tensor):
            self.tensors.append(value)
            self.paths.append(path)
            return "tensor"
        if type(value) in (list, tuple):
            return (type(value), *(self.describe(v, f"{path}[{i}]") for i, v in enumerate(value)))
        if type(value) in (set, frozenset):
            return (type(value), frozenset(self.describe(v, path) for v in value))
        if type(value) is dict:
            return (dict, *self._entries(value.items(), path))
        if isinstance(value, types.MethodType):
            return (types.MethodType, self.describe(value.__self__, path), self.describe(value.__func__, path))
        return self._reduced(value, path)

    def _entries(self, entries: Any, path: str) -> Iterator[Any]:
        for key, value in entries:
            yield (self.describe(key, path), self.describe(value, f"{path}[{key!r}]"))

    def _reduced(self, value: Any, path: str) -> Any:
        """By its reduction for ``pickle``: (function, arguments, state, items, entries)."""
        try:
            reduction = value.__reduce_ex__(4)
        except Exception as error:
            raise _Closed(f"'{path or type(value).__name__}' is a {type(value).__qualname__} ({error})") from error
        if isinstance(reduction, str):
            return _Shared(value)
        function, arguments, state, items, entries = (*reduction, None, None, None)[:5]
        attributes = [*state, None] if isinstance(state, tuple) and len(state) == 2 else [state, None]
        described = [type(value), self.describe(function, path)]
        described.append(tuple(self.describe(a, path) for a in arguments))
        for state_part in attributes[:2]:
            if isinstance(state_part, dict):
                described.append(tuple(self._attributes(value, state_part, path)))
            else:
                described.append(None if state_part is None else self.describe(state_part, path))
        described.append(tuple(self.describe(v, f"{path}[{i}]") for i, v in enumerate(items or ())))
        described.append(tuple(self._entries(entries or (), path)))
        return tuple(described)

    def _attributes(self, owner: Any, attributes: dict[str, Any], path: str) -> Iterator[Any]:
        for name, value in attributes.items():
            inside = path if name == "data" and isinstance(owner, _HOLD_DATA) else f"{path}.{name}"
            yield (name, self.describe(value, inside))
