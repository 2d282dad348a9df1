"""Function modes that answer what a model asks of PyTorch, not what PyTorch asks of itself around it.

Most of what an export reads of tensors is read before and after the model runs: a mode that answers there, too, costs
an eighth of the export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode, _push_mode

from lrp_fx.capture.repeated.answering import answered, has_hooks, is_answerable


@contextmanager
def while_traced(model: nn.Module, modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """In this context ``modes`` are entered while ``model`` is traced, below the modes that the tracer has entered.

    A model whose calls cannot be answered, or that has hooks, has them in the whole context.
    """
    below = _len_torch_function_stack()

    def run(module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if get_proxy_mode() is None:  # a run aside
            return forward(module, *args, **kwargs)
        with only(below) as above, _entered([*modes, *above]):
            return forward(module, *args, **kwargs)

    with ExitStack() as stack:
        if is_answerable(model) and not has_hooks(model):
            stack.enter_context(answered([model], run))
        else:
            for mode in modes:
                stack.enter_context(mode)
        yield


@contextmanager
def only(count: int) -> Iterator[list[TorchFunctionMode]]:
    """In this context only the first ``count`` function modes of this thread answer calls; the others, in order."""
    others = [_pop_mode() for _ in range(_len_torch_function_stack() - count)][::-1]
    try:
        yield others
    finally:
        for mode in others:
            _push_mode(mode)


@contextmanager
def _entered(modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """In this context ``modes`` answer calls, the last one first."""
    for mode in modes:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            _pop_mode()
