"""Calls of modules answered by a function, while a model is exported.

The modules get a subclass of their own class in its place, whose ``forward`` is the function. Only the thread that
exports is answered; for another one the modules run as ever.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import _AttrProxy

#: (module, forward of its class, positional arguments, keyword arguments) -> output
Answer = Callable[[nn.Module, Callable[..., Any], Any, dict[str, Any]], Any]


_ANSWERS = "_lrp_answers"  #: attribute of a class that takes the place of a module's own


def class_of(module: nn.Module) -> type:
    """The class of a module in the model: neither one that answers its calls, nor one of a tracer's stand-ins."""
    return next(k for k in type(module).__mro__ if _ANSWERS not in vars(k) and not issubclass(k, _AttrProxy))


def is_answerable(module: nn.Module) -> bool:
    """Whether a module has a ``forward`` in Python, which is that of its class."""
    forward = getattr(type(module), "forward", None)
    python = isinstance(forward, types.FunctionType) and forward is not nn.Module.forward
    return python and not isinstance(module, torch.jit.ScriptModule) and "forward" not in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs more than its ``forward``."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


@contextmanager
def answered(modules: Iterable[nn.Module], answer: Answer) -> Iterator[None]:
    """In this context ``answer`` answers the calls of ``modules`` in this thread."""
    kinds: dict[type, type] = {}
    changed: list[tuple[nn.Module, type]] = []
    thread = threading.get_ident()
    try:
        for module in modules:
            kind = type(module)
            if kind not in kinds:
                kinds[kind] = _answering(kind, answer, thread)
            module.__class__ = kinds[kind]  # type: ignore[assignment]
            changed.append((module, kind))
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind  # type: ignore[assignment]


def _answering(kind: Any, answer: Answer, thread: int) -> type:
    """A subclass of a module class whose calls are answered."""

    @functools.wraps(kind.forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return kind.forward(self, *args, **kwargs)
        return answer(self, kind.forward, args, kwargs)

    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**named, "forward": call, _ANSWERS: True})
