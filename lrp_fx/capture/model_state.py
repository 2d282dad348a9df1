"""Whether a model has changed since its capture: all objects that its code can read, compared by identity.

A capture depends on more than the call: on modules, hooks, parameters and buffers, on plain attributes (a scale, an
epsilon, a list of layers), on configuration objects, on the code of the classes, and on what that code and hooks read:
objects whose methods they are, variables around them, globals (those of installed packages by identity only).
:class:`ModelState` walks all of these once and stores the objects. A later check compares identities, at about a
microsecond per module. A value that was replaced by an equal one is no change, nor is training mode, as captures are
taken in evaluation mode. Writes *into* a tensor do not change a graph that shares it; a tensor of another size or dtype
in its place does.

The fingerprint of the disk cache (``lrp_fx.cache.fingerprint``) describes the same objects by value, for other
processes. The attributes that count are defined here for both.
"""

from __future__ import annotations

import collections
import copy
import functools
import operator
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lrp_fx.capture.object_contents import (
    READERS,
    Contents,
    class_contents,
    dict_contents,
    entries,
    functions_of,
    global_names,
    slot_contents,
)
from lrp_fx.capture.offload import is_hooked
from lrp_fx.capture.packages import is_local, is_torch
from lrp_fx.capture.stand_in_model import StandInModel, copied

#: attributes of a module on which no capture depends
NOT_COUNTED = frozenset({"training"})
#: the dicts of a module with its named members
NAMED = ("_parameters", "_buffers", "_modules")

_BY_VALUE = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device, np.generic)
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, torch.jit.ScriptModule, weakref.ref)
_MOST = (
    2000  #: limit on entries of a container and on objects behind one attribute; beyond it only identity is compared
)


class _Holder(NamedTuple):
    """An object and its stored contents.

    ``read`` reads the contents; ``attributes`` tells whether they are attributes, in contrast to entries.
    """

    value: Any
    read: Callable[[Any], Contents]
    keys: list[Any]
    values: list[Any]
    attributes: bool

    def part(self, name: str, key: Any) -> str:
        """The name to ignore after a run wrote this entry: that of the attribute, or of the whole container."""
        return _place(name, key) if self.attributes else name


class ModelState:
    """The objects of a model at the time of construction.

    Attributes:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: dict[int, str] = {}  #: id of an object -> its name
        self._dicts: list[_Holder] = []  #: most objects are here, so this loop has to be fast
        self._others: list[_Holder] = []
        self._empty: list[Any] = []
        self._tensors: list[tuple[Tensor, torch.Size, torch.dtype, torch.device]] = []
        self._copies: list[tuple[Any, Any]] = []  #: sets and arrays: their contents are compared by value
        self._opaque: list[Any] = []
        self._ignored: set[str] = set()
        self._functions: list[types.FunctionType] = []
        self._parts: frozenset[int] = frozenset()  #: ids of what is reached without a function or method
        _Walk(self)

    def unchanged(self) -> bool:
        """Whether no object of the model has changed."""
        return self._looks_unchanged() or self.change() is None

    def change(self) -> str | None:
        """The first change, in words; None if there is none."""
        return next((text for name, text in self._changes() if name not in self._ignored), None)

    def written(self) -> frozenset[str]:
        """Names of what a run of the model wrote since, such as counters and position tables."""
        return frozenset(name for name, _ in self._changes(_equal))

    def ignore(self, names: frozenset[str]) -> None:
        """Count these as unchanged: a run writes them, and its next run does not depend on that."""
        self._ignored |= names

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model, under a name that is the same in other processes."""
        return {self._names[id(tensor)]: tensor for tensor, *_ in self._tensors}

    def stand_in(self) -> StandInModel:
        """A copy of the modules, their attributes and configuration that shares all tensors with the model.

        Settings of the copy, such as evaluation mode, affect neither the model nor other threads. Its parameters are
        new objects over the same memory, as tracing reads gradients, which another thread may be writing. If a part
        cannot be copied, or hooks load the weights, the stand-in is the model itself.
        """
        if is_hooked(self.model):
            return StandInModel(self.model, {})
        tensors = [t for t, *_ in self._tensors]
        plain = [t for t in tensors if type(t) is nn.Parameter and t.layout is torch.strided]
        try:
            return copied(self.model, plain, [*tensors, *self._opaque], self._functions, self._parts)
        except Exception:  # objects that cannot be copied may raise anything
            return StandInModel(self.model, {})

    def _looks_unchanged(self) -> bool:
        differs = operator.is_not
        for value, _, keys, values, _ in self._dicts:
            if list(value) != keys or any(map(differs, value.values(), values)):
                return False
        for value, read, keys, values, _ in self._others:
            keys_now, values_now = read(value)
            if keys_now != keys or any(map(differs, values_now, values)):
                return False
        if any(self._empty) or not all(_alike(value, stored) for value, stored in self._copies):
            return False
        return all(
            t.shape == shape and t.dtype is kind and t.device == place for t, shape, kind, place in self._tensors
        )

    def _changes(self, same: Callable[[Any, Any], bool] | None = None) -> Iterator[tuple[str, str]]:
        """(name, description) of every change; values that were replaced by equal ones are stored as unchanged."""
        for holders in (self._dicts, self._others):
            for index, holder in enumerate(holders):
                yield from self._changes_of(holders, index, holder, same or _same)
        for value in self._empty:
            if value:
                yield self._names[id(value)], f"'{self._names[id(value)]}' has entries now"
        for value, stored in self._copies:
            if not _alike(value, stored):
                yield self._names[id(value)], f"the contents of '{self._names[id(value)]}' changed"
        for tensor, shape, dtype, device in self._tensors:
            if (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, device):
                name = self._names[id(tensor)]
                now = f"{tensor.dtype}, {tuple(tensor.shape)}, {tensor.device}"
                yield name, f"'{name}' is {now} (was {dtype}, {tuple(shape)}, {device})"

    def _changes_of(
        self, holders: list[_Holder], index: int, holder: _Holder, same: Callable[[Any, Any], bool]
    ) -> Iterator[tuple[str, str]]:
        keys, values = holder.read(holder.value)
        if keys == holder.keys and not any(map(operator.is_not, values, holder.values)):
            return
        before, now = dict(zip(holder.keys, holder.values, strict=True)), dict(zip(keys, values, strict=True))
        skipped = NOT_COUNTED if "_modules" in before else frozenset()
        differing = [
            k
            for k in {**before, **now}
            if k not in skipped and not (k in before and k in now and same(before[k], now[k]))
        ]
        name = self._names[id(holder.value)]
        for key in differing:
            yield holder.part(name, key), _described(_place(name, key), before, now, key)
        if all(holder.part(name, key) in self._ignored for key in differing):  # the next check is quick again
            holders[index] = holder._replace(keys=keys, values=values)


class _Walk:
    """Fills a :class:`ModelState`: every object reachable from the model's modules and classes, each once."""

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self.modules = {id(module) for module in state.model.modules()}
        self.stack: list[tuple[Any, str]] = []
        self.behind: collections.Counter[str] = collections.Counter()
        self.globals: dict[int, tuple[dict[str, Any], set[str]]] = {}
        self.later: list[tuple[Any, str]] | None = []
        for path, module in state.model.named_modules():
            self.hold(state._dicts, vars(module), path, dict_contents, True, NOT_COUNTED)
            self.follow(path)
        state._parts = frozenset(self.modules.union(state._names))
        functions, self.later = self.later, None
        for value, name in functions:
            self.stack.append((value, name))
            self.follow(name)
        for kind in {base for module in state.model.modules() for base in type(module).__mro__}:
            if not is_torch(kind.__module__):
                self.enter_class(kind)
        for namespace, names in self.globals.values():
            read = functools.partial(entries, tuple(sorted(names)))
            self.hold(state._others, namespace, namespace.get("__name__", ""), read, True, inside=False)

    def enter_class(self, kind: type) -> None:
        """Store the members of a class, and enter what its functions read."""
        name = f"class {kind.__qualname__}"
        self.hold(self.state._others, kind, name, class_contents, True, inside=False)
        for function in functions_of(kind):
            if is_local(function):
                self.stack.append((function, f"{name}.{function.__name__}"))
                self.follow(f"{name}.{function.__name__}")
            else:
                self.enter_globals(function)

    def enter_globals(self, function: types.FunctionType) -> None:
        """Note the globals that a function reads; those of a local function are entered, too."""
        namespace = function.__globals__
        names = [name for name in global_names(function.__code__) if name in namespace]
        self.globals.setdefault(id(namespace), (namespace, set()))[1].update(names)
        if is_local(function):
            named = [(namespace[name], f"{namespace.get('__name__', '')}.{name}") for name in names]
            self.stack += [(value, name) for value, name in named if not isinstance(value, _BY_VALUE)]

    def follow(self, path: str) -> None:
        """Enter all objects behind one module or function, without submodules.

        What only functions and methods lead to is no part of the model, so these are entered after all modules.
        """
        self.behind.clear()
        while self.stack:
            value, name = self.stack.pop()
            if id(value) in self.state._names or id(value) in self.modules:
                continue
            if self.later is not None and isinstance(value, (types.FunctionType, types.MethodType)):
                self.later.append((value, name))
            else:
                self.note(value, name, name[len(path) :].lstrip(".").partition(".")[0])

    def note(self, value: Any, name: str, attribute: str) -> None:
        """Enter one object; the number of objects behind one ``attribute`` of a module is limited."""
        state = self.state
        state._names[id(value)] = name
        self.behind[attribute] += 1
        if isinstance(value, Tensor):
            state._tensors.append((value, value.shape, value.dtype, value.device))
        elif isinstance(value, (set, frozenset, bytearray, np.ndarray)) and _length(value) <= _MOST:
            state._copies.append((value, copy.copy(value)))
        elif isinstance(value, dict) and not value and not getattr(value, "__dict__", None):
            state._empty.append(value)
        elif isinstance(value, _OPAQUE) or self.behind[attribute] > _MOST or not self.look_inside(value, name):
            state._opaque.append(value)
        if isinstance(value, types.FunctionType):
            state._functions.append(value)
            self.enter_globals(value)
        elif isinstance(value, types.MethodType) and id(value.__self__) not in state._parts:
            state._opaque.append(value)

    def look_inside(self, value: Any, name: str) -> bool:
        """Enter the contents of a container or a plain object; False if it has none that can be read."""
        read = next((reader for kind, reader in READERS if isinstance(value, kind)), None)
        if read is not None:
            if hasattr(value, "__len__") and len(value) > _MOST:
                return False
            self.hold(self.state._dicts if read is dict_contents else self.state._others, value, name, read, False)
        if isinstance(attributes := getattr(value, "__dict__", None), dict) and attributes:
            self.hold(self.state._dicts, attributes, name, dict_contents, True)
        elif read is None and any(getattr(kind, "__slots__", None) for kind in type(value).__mro__):
            self.hold(self.state._others, value, name, slot_contents, True)
        elif read is None:
            return attributes is not None
        return True

    def hold(
        self,
        holders: list[_Holder],
        value: Any,
        name: str,
        read: Callable[[Any], Contents],
        attributes: bool,
        skipped: frozenset[str] = frozenset(),
        inside: bool = True,
    ) -> None:
        """Store the contents of one object, and put them on the stack."""
        keys, values = read(value)
        self.state._names[id(value)] = name
        holders.append(_Holder(value, read, keys, values, attributes))
        for key, item in zip(keys, values, strict=True):
            if inside and key not in skipped and not isinstance(item, _BY_VALUE):
                self.stack.append((item, name if key in NAMED else _place(name, key)))


def _length(value: Any) -> int:
    """The number of entries; an array without axes has one."""
    return int(value.size) if isinstance(value, np.ndarray) else len(value)


def _alike(value: Any, stored: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == stored.shape and value.dtype == stored.dtype and np.array_equal(value, stored)
    return bool(value == stored)


def _same(before: Any, now: Any) -> bool:
    """Whether two values are identical, or equal plain values."""
    if before is now:
        return True
    if type(before) is not type(now):
        return False
    if isinstance(before, tuple):
        return len(before) == len(now) and all(map(_same, before, now))
    return isinstance(before, (*_BY_VALUE, types.MethodType)) and bool(before == now)


def _equal(before: Any, now: Any) -> bool:
    """As :func:`_same`, also for containers: torch.export replaces them in module attributes by equal ones."""
    if _same(before, now):
        return True
    if type(before) is not type(now) or not isinstance(before, (dict, list, tuple, collections.deque)):
        return False
    if isinstance(before, dict):
        return list(before) == list(now) and all(map(_equal, before.values(), now.values()))
    return len(before) == len(now) and all(map(_equal, before, now))


def _place(name: str, key: Any) -> str:
    return f"{name}.{key}".lstrip(".") if isinstance(key, str) else f"{name}[{key!r}]"


def _described(place: str, before: dict[Any, Any], now: dict[Any, Any], key: Any) -> str:
    if key not in now:
        return f"'{place}' was removed"
    if key not in before:
        return f"'{place}' was added"
    if isinstance(now[key], _BY_VALUE):
        return f"'{place}' is {now[key]!r} (was {before[key]!r})"
    return f"'{place}' is another {type(now[key]).__name__}"


def switches() -> tuple[Any, ...]:
    """The global settings of PyTorch for precision and device: default dtype, default device, autocast."""
    autocast = tuple(torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in ("cpu", "cuda"))
    return (torch.get_default_dtype(), str(torch.get_default_device()), autocast)
