"""No garbage collection while graphs grow."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """In this context Python looks for no garbage.

    A collection visits every object of the process, and is due whenever their number has grown by a quarter. A growing
    graph makes it due again and again, and finds nothing: nodes live as long as their graph.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
