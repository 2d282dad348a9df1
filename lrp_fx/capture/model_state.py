"""Whether a model has changed since its capture: all objects that its code can read, compared by identity.

A capture depends on more than the call: on modules, hooks, parameters and buffers, on plain attributes (a scale, an
epsilon, a list of layers), on configuration objects, and on the code of the classes. :class:`ModelState` walks all of
these once and stores the objects. A later check compares identities, at about a microsecond per module. A value that
was replaced by an equal one is no change, nor is training mode, as captures are taken in evaluation mode. Writes *into*
a tensor do not change a graph that shares it; a tensor of another size or dtype in its place does.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lrp_fx.capture.offload import is_hooked

#: attributes of a module on which no capture depends
NOT_COUNTED = frozenset({"training"})
#: the dicts of a module with its named members
NAMED = ("_parameters", "_buffers", "_modules")

_BY_VALUE = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device, np.generic)
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodType, torch.jit.ScriptModule, weakref.ref)
_MOST = (
    2000  #: limit on entries of a container and on objects behind one attribute; beyond it only identity is compared
)

Contents = tuple[list[Any], list[Any]]  #: (keys, values)


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


@dataclass(frozen=True)
class StandInModel:
    """A copy of a model to capture.

    Attributes:
        module: the copy.
        originals: id of a parameter of the copy -> the model's parameter.
        copies: the parameters of the copy, kept alive so that their ids stay unique.
    """

    module: nn.Module
    originals: Mapping[int, nn.Parameter]
    copies: Sequence[nn.Parameter] = ()

    def give_back(self, graph_module: nn.Module) -> None:
        """Replace the parameters of the copy by those of the model, in a graph that was captured from the copy."""
        for module in graph_module.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in self.originals:
                    module._parameters[name] = self.originals[id(parameter)]


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
        self._copies: list[tuple[Any, Any]] = []  #: sets and arrays, whose contents are compared by value
        self._opaque: list[Any] = []
        self._ignored: set[str] = set()
        _Walk(self)

    def unchanged(self) -> bool:
        """Whether no object of the model has changed."""
        return self._looks_unchanged() or self.change() is None

    def change(self) -> str | None:
        """The first change, in words; None if there is none."""
        return next((text for name, text in self._changes() if name not in self._ignored), None)

    def ignore_writes(self, of_twin: ModelState) -> None:
        """Ignore the attributes that a run of the model writes itself, such as counters and position tables.

        Args:
            of_twin: state of a :meth:`stand_in` before its run.
        """
        self._ignored |= {name for name, _ in of_twin._changes(_equal)}

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
        shared = {id(value): value for value in (*(t for t, *_ in self._tensors), *self._opaque)}
        plain = [t for t, *_ in self._tensors if type(t) is nn.Parameter and t.layout is torch.strided]
        copies = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in plain}
        try:
            return StandInModel(
                copy.deepcopy(self.model, shared | copies), {id(copies[id(p)]): p for p in plain}, list(copies.values())
            )
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
        if any(self._empty) or not all(_alike(value, copied) for value, copied in self._copies):
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
        for value, copied in self._copies:
            if not _alike(value, copied):
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
        for path, module in state.model.named_modules():
            self.hold(state._dicts, vars(module), path, _dict_contents, True, NOT_COUNTED)
            self.follow(path)
        for kind in {base for module in state.model.modules() for base in type(module).__mro__}:
            if kind.__module__.partition(".")[0] not in ("torch", "builtins"):
                self.hold(state._others, kind, f"class {kind.__qualname__}", _class_contents, True, inside=False)

    def follow(self, path: str) -> None:
        """Enter all objects behind one module, without submodules."""
        self.behind.clear()
        while self.stack:
            value, name = self.stack.pop()
            if id(value) not in self.state._names and id(value) not in self.modules:
                self.note(value, name, name[len(path) :].lstrip(".").partition(".")[0])

    def note(self, value: Any, name: str, attribute: str) -> None:
        """Enter one object; the number of objects behind one ``attribute`` of a module is limited."""
        state = self.state
        state._names[id(value)] = name
        self.behind[attribute] += 1
        if isinstance(value, Tensor):
            state._tensors.append((value, value.shape, value.dtype, value.device))
        elif isinstance(value, (set, frozenset, np.ndarray)) and len(value) <= _MOST:
            state._copies.append((value, copy.copy(value)))
        elif isinstance(value, dict) and not value and not getattr(value, "__dict__", None):
            state._empty.append(value)
        elif isinstance(value, _OPAQUE) or self.behind[attribute] > _MOST or not self.look_inside(value, name):
            state._opaque.append(value)

    def look_inside(self, value: Any, name: str) -> bool:
        """Enter the contents of a container or a plain object; False if it has none that can be read."""
        read = next((reader for kind, reader in _READERS if isinstance(value, kind)), None)
        if read is not None:
            if hasattr(value, "__len__") and len(value) > _MOST:
                return False
            self.hold(self.state._dicts if read is _dict_contents else self.state._others, value, name, read, False)
        if isinstance(attributes := getattr(value, "__dict__", None), dict) and attributes:
            self.hold(self.state._dicts, attributes, name, _dict_contents, True)
        elif read is None and any(getattr(kind, "__slots__", None) for kind in type(value).__mro__):
            self.hold(self.state._others, value, name, _slot_contents, True)
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


def _dict_contents(value: dict[Any, Any]) -> Contents:
    return list(value), list(value.values())


def _items(value: Any) -> Contents:
    items = list(value)
    return list(range(len(items))), items


def _partial_contents(value: functools.partial[Any]) -> Contents:
    return ["func", "args", "keywords"], [value.func, value.args, value.keywords]


def _function_contents(value: types.FunctionType) -> Contents:
    """The closure, code and defaults of a function, such as the strength of a hook."""
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    full = {name: cell.cell_contents for name, cell in cells.items() if _is_set(cell)}
    return [*full, "__code__", "__defaults__"], [*full.values(), value.__code__, value.__defaults__]


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _slot_contents(value: Any) -> Contents:
    names = [n for kind in type(value).__mro__ for n in _slots(kind) if hasattr(value, n)]
    return names, [getattr(value, n) for n in names]


def _slots(kind: type) -> tuple[str, ...]:
    slots = getattr(kind, "__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _class_contents(kind: type) -> Contents:
    return list(vars(kind)), list(vars(kind).values())


_READERS: tuple[tuple[Any, Callable[[Any], Contents]], ...] = (
    (dict, _dict_contents),
    ((list, tuple, collections.deque), _items),
    (functools.partial, _partial_contents),
    (types.FunctionType, _function_contents),
)


def _alike(value: Any, copied: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == copied.shape and value.dtype == copied.dtype and np.array_equal(value, copied)
    return bool(value == copied)


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
