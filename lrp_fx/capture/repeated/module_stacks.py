"""Module stacks of traced nodes: those of a copied call, with its own paths and numbers of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def module_stack(tracer: Any) -> dict[str, Any]:
    """The module calls under way: key -> path, class. The key has the number of the call, from the second one on."""
    return getattr(tracer, "module_stack", {})


def call_counts(tracer: Any) -> dict[str, int]:
    """Path of a module -> number of its calls so far."""
    return getattr(tracer, "num_calls", {})


@dataclass(frozen=True)
class Place:
    """Where a call is: the module stack of its nodes, and the number of calls of every module before.

    Attributes:
        stack: key -> path, name of the class.
        counts: path -> number of calls.
    """

    stack: dict[str, Any]
    counts: dict[str, int]

    @classmethod
    def of(cls, tracer: Any) -> Place:
        """The place at which a tracer is."""
        stack = {
            key: (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
            for key, (path, kind) in module_stack(tracer).items()
        }
        return cls(stack, dict(call_counts(tracer)))

    @property
    def path(self) -> str:
        """The path of the module that is called."""
        return [path for path, _ in self.stack.values()][-1] if self.stack else ""


class Stacks:
    """Module stacks of the nodes of one call, as those of another."""

    def __init__(self, before: Place, now: Place) -> None:
        self._before, self._now = before, now
        self._done: dict[Sequence[str], dict[str, Any]] = {}

    def renamed(self, stack: dict[str, Any]) -> dict[str, Any]:
        """The stack of a node of the first call, as that of the node's copy in the second one."""
        keys = tuple(stack)
        if keys not in self._done:
            inner = list(stack.items())[len(self._before.stack) :]
            renamed = {self._key(key, path): (self.path(path), kind) for key, (path, kind) in inner}
            self._done[keys] = self._now.stack | renamed
        return dict(self._done[keys])

    def path(self, path: str) -> str:
        """The path of a module in the second call."""
        old = self._before.path
        return self._now.path + path[len(old) :] if path.startswith(f"{old}.") else path

    def _key(self, key: str, path: str) -> str:
        name, _, number = key.partition("@")
        further = int(number or 0) - self._before.counts.get(path, 0) + self._now.counts.get(self.path(path), 0)
        return f"{self.path(name)}@{further}" if further else self.path(name)
