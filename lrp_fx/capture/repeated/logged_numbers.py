"""Sizes of tensors in a run that is logged: symbolic numbers that have a value and note what is done with them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.fx.experimental.sym_node import METHOD_TO_OPERATOR

SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SYMBOL_OF: dict[type, Any] = {int: torch.SymInt, float: torch.SymFloat, bool: torch.SymBool}

#: method of a symbolic number -> the function of plain numbers
_METHODS: dict[str, Any] = METHOD_TO_OPERATOR | {
    "sym_float": float, "sym_and": operator.and_, "and_": operator.and_, "sym_or": operator.or_, "or_": operator.or_,
    "sym_not": operator.not_, "sym_max": max, "sym_min": min, "sym_ite": lambda b, x, y: x if b else y,
}  # fmt: skip
#: methods of a symbolic number that tell its value
_DECISIONS = {
    "int_", "bool_", "guard_int", "guard_float", "guard_bool", "expect_true", "guard_size_oblivious", "guard_or_false",
    "guard_or_true", "statically_known_true",
}  # fmt: skip


class NotLogged(BaseException):
    """A run cannot be logged, or does more than is worth it. Code that catches exceptions does not catch this one."""


class Log(Protocol):
    """The part of a log that numbers read."""

    def add(self, what: Any, operands: Sequence[int], results: Sequence[int]) -> None:
        """Add an entry."""

    def described(self, value: Any, numbers: list[int]) -> Any:
        """The form of a value."""

    def number_of_size(self, size: Any) -> int:
        """The number of a size."""


def logged_number(log: Log, value: Any) -> Any:
    """A plain number as a symbolic one that logs what is done with it."""
    return _SYMBOL_OF[type(value)](_Number(log, value))


class _Number:
    """The node of a symbolic number with a value (in the place of PyTorch's ``SymNode``): computes, and logs it."""

    constant = None

    def __init__(self, log: Log, value: Any) -> None:
        self.log, self.value = log, value

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in _METHODS:
            return lambda *others: self._computed(name, others)
        if name in _DECISIONS:
            return lambda *_: self._decided(name)
        raise NotLogged(f"{name} of a size")

    def _computed(self, name: str, others: Sequence[_Number]) -> _Number:
        result = _Number(self.log, _METHODS[name](self.value, *[other.value for other in others]))
        numbers: list[int] = []
        what = self.log.described([self._symbol(), *[other._symbol() for other in others]], numbers)
        self.log.add((name, what), numbers, [self.log.number_of_size(result._symbol())])
        return result

    def _decided(self, name: str) -> Any:
        self.log.add((name, type(self.value), self.value), [self.log.number_of_size(self._symbol())], ())
        return self.value

    def _symbol(self) -> Any:
        return _SYMBOL_OF[type(self.value)](self)

    def _wrapped(self, value: Any) -> _Number:
        """A literal: the log has its value, not a number."""
        return _Literal(self.log, value)

    wrap_int = wrap_float = wrap_bool = _wrapped

    def is_int(self) -> bool:
        return type(self.value) is int

    def is_float(self) -> bool:
        return type(self.value) is float

    def is_bool(self) -> bool:
        return type(self.value) is bool

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return True

    def _graph_repr(self) -> str:
        return str(self._decided("int_"))


class _Literal(_Number):
    def _symbol(self) -> Any:
        return self.value


def plain(value: Any) -> Any:
    """The value of a symbolic number; the formula of one that is not of a log."""
    return value.node.value if isinstance(value.node, _Number) else ("formula", str(value.node.expr))


def without_symbols(value: Any) -> Any:
    """Arguments with plain numbers in the place of logged ones; the same object if there are none."""
    if isinstance(value, SYMBOLS):
        return value.node.value if isinstance(value.node, _Number) else value
    if isinstance(value, slice):
        bounds = (value.start, value.stop, value.step)
        new = [without_symbols(part) for part in bounds]
        return value if all(a is b for a, b in zip(bounds, new, strict=True)) else slice(*new)
    if type(value) in (tuple, list, torch.Size):
        new = [without_symbols(item) for item in value]
        return value if all(a is b for a, b in zip(value, new, strict=True)) else type(value)(new)
    if type(value) is dict:
        new = [without_symbols(item) for item in value.values()]
        same = all(a is b for a, b in zip(value.values(), new, strict=True))
        return value if same else dict(zip(value, new, strict=True))
    return value
