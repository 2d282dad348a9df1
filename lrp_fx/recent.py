"""A dictionary of bounded size that drops the least recently used entry (LRU cache)."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from lrp_fx.capture import TRACING

K = TypeVar("K")
V = TypeVar("V")


class Recent(OrderedDict[K, V]):
    """A dictionary of the ``limit`` most recently used entries."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)

    def recall(self, key: K, make: Callable[[], V]) -> V:
        """The entry of ``key``, on a cache miss the result of ``make``; only one thread traces at a time."""
        value = self.get(key)
        if value is None:
            with TRACING:
                value = self.get(key)
                if value is None:
                    self[key] = value = make()
        with contextlib.suppress(KeyError):  # another thread may have removed it just now
            self.move_to_end(key)
        return value
