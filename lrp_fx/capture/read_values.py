"""What Python takes out of tensors while a run is recorded, noted as it happens."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lrp_fx.capture.random_draws import draw, draws

#: hand out values without calling an operator
_HANDED_OUT = {"tolist", "numpy", "__array__", "__dlpack__"}
#: make a tensor of lists, and take the values of tensors in them
_MADE_OF = {"tensor", "as_tensor", "asarray", "new_tensor"}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_ASKING = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _allclose(a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    return bool(torch.isclose(a, b, rtol, atol, equal_nan).all())


#: compare tensors and return no tensor: answered by operators, so that only the outcome is a decision
_COMPARED: dict[str, Callable[..., bool]] = {"equal": _equal, "allclose": _allclose}


class Transforms(Exception):
    """The model differentiates, or maps over a dimension, while it runs: its operators are not those it calls."""


#: what differentiates; ``vmap`` and the transforms of ``torch.func`` are told by the level that they open
_DIFFERENTIATE = {torch.autograd.grad, torch.autograd.backward, Tensor.backward, torch._VF._make_dual}


class Seeing(TorchFunctionMode):
    """A mode that also sees what those of PyTorch's functions call that are written in Python.

    Such a function hands itself to the mode, and would do so again when the mode calls it: a copy of it runs that does
    not ask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[FunctionType, FunctionType] = {}
        self._running: list[FunctionType] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        kwargs = kwargs or {}
        if (answered := self.answer(func, args, kwargs)) is not NotImplemented:
            return answered
        if not isinstance(func, FunctionType) or func in self._running:
            return func(*args, **kwargs)
        self._running.append(func)
        try:
            with self:
                return self._unasking(func)(*args, **kwargs)
        finally:
            self._running.pop()

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call, or NotImplemented to let it happen."""
        raise NotImplementedError

    def _unasking(self, func: FunctionType) -> FunctionType:
        if func not in self._copies:
            names = func.__globals__ | dict.fromkeys(_ASKING, lambda *_: False)
            copy = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
            copy.__kwdefaults__ = func.__kwdefaults__
            self._copies[func] = copy
        return self._copies[func]


def _in_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


class Reads(Seeing):
    """Notes the nodes whose values Python takes out without an operator.

    Args:
        within: whether the operators inside of ``vmap`` and of derivatives are recorded; otherwise both are refused.

    Attributes:
        nodes: of the graph that is being recorded.
        drawn: names of the functions that drew random numbers, which are constants of the graph.
    """

    def __init__(self, within: bool = False) -> None:
        super().__init__()
        self._within = within
        self.nodes: list[fx.Node] = []
        self.drawn: list[str] = []

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A comparison by operators, a draw as a constant; notes what else hands out values."""
        name = getattr(func, "__name__", "")
        if get_proxy_mode() is None:  # not a part of the recording
            return NotImplemented
        if not self._within and (func in _DIFFERENTIATE or _in_transform()):
            raise Transforms
        if draws(func, args, kwargs):
            self.drawn.append(name)
            with self:
                return draw(func, args, kwargs, self.note)
        if name in _COMPARED:
            with self:
                return _COMPARED[name](*args, **kwargs)
        if name in _HANDED_OUT:
            self.note(args[0])
        elif name in _MADE_OF:
            for numbers in args:
                for tensor in () if isinstance(numbers, Tensor) else pytree.tree_leaves(numbers):
                    self.note(tensor)
        elif func == _DATA:  # hands on its memory without calling an operator
            with self:
                return args[0].detach()
        return NotImplemented

    def note(self, tensor: Any) -> None:
        """Note that the value of a tensor was taken."""
        mode = get_proxy_mode()
        if isinstance(tensor, Tensor) and mode is not None:
            slot: Any = get_proxy_slot(tensor, mode.tracer, None, lambda p: p)
            if slot is not None:
                self.nodes.append(slot.proxy.node)
