"""Parts of an output that keep the values of the run that made them: a graph cannot make them anew."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lrp_fx.capture.object_contents import READERS
from lrp_fx.errors import CaptureError

_RUNNING = (Iterator, AsyncIterator, Coroutine)
_FUNCTIONS = (types.FunctionType, types.MethodType)
_WHOLE = (type, str, bytes, nn.Module, types.ModuleType, types.CodeType)


def check_output(output: Any, owned: Collection[int]) -> None:
    """Check that no generator and no function in an output keeps values of the run.

    Args:
        output: what the model returned.
        owned: ids of the model's own tensors.

    Raises:
        CaptureError: if one does: later calls would return the values of the first one.
    """
    seen: set[int] = set()
    for leaf in pytree.tree_leaves(output):
        stack = [leaf] if not isinstance(leaf, Tensor) else []
        while stack:
            value = stack.pop()
            if id(value) in seen or isinstance(value, (Tensor, *_WHOLE)):
                continue
            seen.add(id(value))
            inside = _contents(value)
            closes = isinstance(value, _FUNCTIONS) and any(isinstance(v, Tensor) and id(v) not in owned for v in inside)
            if closes or isinstance(value, _RUNNING):
                name = getattr(value, "__qualname__", "without a name")
                raise CaptureError(
                    f"the model returns a {type(value).__name__} ({name}) that keeps values of this run; a captured "
                    "graph would return the same ones at every call.\n"
                    "Remedy: return tensors, in a list or a tuple in place of a generator."
                )
            stack += inside


def _contents(value: Any) -> list[Any]:
    reader = next((read for kind, read in READERS if isinstance(value, kind)), None)
    if reader is not None:
        return reader(value)[1]
    return list(vars(value).values()) if hasattr(value, "__dict__") else []
