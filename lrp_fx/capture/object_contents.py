"""Contents of objects: the entries of a container, the attributes of an object, what a function reads."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

Contents = tuple[list[Any], list[Any]]  #: (keys, values)

_OF_A_FUNCTION = ("__code__", "__defaults__", "__kwdefaults__")
_MOST_WRAPPERS = 16  #: a function may wrap itself


def dict_contents(value: dict[Any, Any]) -> Contents:
    """The entries of a dict."""
    return list(value), list(value.values())


def _items(value: Any) -> Contents:
    items = list(value)
    return list(range(len(items))), items


def _partial_contents(value: functools.partial[Any]) -> Contents:
    return ["func", "args", "keywords"], [value.func, value.args, value.keywords]


def function_contents(value: types.FunctionType) -> Contents:
    """The closure, code and defaults of a function, such as the strength of a hook."""
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    full = {name: cell.cell_contents for name, cell in cells.items() if is_set(cell)}
    return [*full, *_OF_A_FUNCTION], [*full.values(), *(getattr(value, name) for name in _OF_A_FUNCTION)]


def is_set(cell: types.CellType) -> bool:
    """Whether a variable that a function closes over has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def slot_contents(value: Any) -> Contents:
    """The attributes of an object whose class has slots."""
    names = [n for kind in type(value).__mro__ for n in _slots(kind) if hasattr(value, n)]
    return names, [getattr(value, n) for n in names]


def _slots(kind: type) -> tuple[str, ...]:
    slots = getattr(kind, "__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def class_contents(kind: type) -> Contents:
    """The members that a class itself defines."""
    return list(vars(kind)), list(vars(kind).values())


def _method_contents(value: types.MethodType) -> Contents:
    return ["__func__", "__self__"], [value.__func__, value.__self__]


def functions_of(kind: type) -> Iterator[types.FunctionType]:
    """The Python functions that a class itself defines (:func:`functions_behind`)."""
    for value in vars(kind).values():
        yield from functions_behind(value)


def functions_behind(value: Any) -> Iterator[types.FunctionType]:
    """The Python function of a property, a static or a class method, and those that it wraps; none for other values."""
    value = value.fget if isinstance(value, property) else value
    value = getattr(value, "__func__", value)
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(value, types.FunctionType):
            return
        yield value
        value = getattr(value, "__wrapped__", None)


@functools.cache
def global_names(code: types.CodeType) -> frozenset[str]:
    """Names that code, or code inside of it, may look up among its globals."""
    inner = [global_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def entries(names: tuple[str, ...], value: dict[str, Any]) -> Contents:
    """The entries of a dict under some names; None where it has none."""
    return list(names), [value.get(name) for name in names]


READERS: tuple[tuple[Any, Callable[[Any], Contents]], ...] = (
    (dict, dict_contents),
    ((list, tuple, collections.deque), _items),
    (functools.partial, _partial_contents),
    (types.FunctionType, function_contents),
    (types.MethodType, _method_contents),
)
