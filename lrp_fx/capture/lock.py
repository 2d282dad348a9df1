"""The lock for tracing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

#: PyTorch's tracers change the state of the whole process (flags, patched methods): one thread traces at a time.
#: Arithmetic on symbolic sizes needs the lock, too: a tracer records it, whatever thread it happens in.
TRACING = threading.RLock()

T = TypeVar("T")


class traced_property(Generic[T]):
    """A property that is computed once, at first use, under :data:`TRACING`.

    ``functools.cached_property`` has another lock in Python 3.11: two threads could deadlock.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> traced_property[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> traced_property[T] | T:
        if instance is None:
            return self
        computed = instance.__dict__
        if self.name not in computed:
            with TRACING:
                if self.name not in computed:
                    computed[self.name] = self.compute(instance)
        return computed[self.name]
