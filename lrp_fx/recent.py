"""A dictionary of bounded size, from which the entry that was not used for longest goes first."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from lrp_fx.capture import TRACING

K = TypeVar("K")
V = TypeVar("V")


class Recent(OrderedDict[K, V]):
    """A dictionary that keeps the ``limit`` entries that were used last."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)

    def recall(self, key: K, make: Callable[[], V]) -> V:
        """The entry of ``key``, made by ``make`` where there is none; two threads never trace at once."""
        value = self.get(key)
        if value is None:
            with TRACING:
                value = self.get(key)
                if value is None:
                    self[key] = value = make()
        with contextlib.suppress(KeyError):  # another thread may have removed it just now
            self.move_to_end(key)
        return value
