"""Tensor values that Python reads while a run is recorded."""

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

#: functions that return values to Python without an operator
_READING = {"tolist", "numpy", "__array__", "__dlpack__"}
#: functions that create a tensor from lists, and read the tensors in these
_FROM_LISTS = {"tensor", "as_tensor", "asarray", "new_tensor"}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_DISPATCH_CHECKS = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _allclose(a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    return bool(torch.isclose(a, b, rtol, atol, equal_nan).all())


#: comparisons that return no tensor; written as operators here, so that only the outcome is a decision
_COMPARED: dict[str, Callable[..., bool]] = {"equal": _equal, "allclose": _allclose}


class Transforms(Exception):
    """The model calls autograd or ``vmap``: the operators to record are below these transforms.

    Attributes:
        differentiate: whether one of them is a derivative.
    """

    def __init__(self, differentiate: bool) -> None:
        super().__init__()
        self.differentiate = differentiate


#: functions that differentiate; ``vmap`` and the transforms of ``torch.func`` are recognised by their level
_DIFFERENTIATE = {torch.autograd.grad, torch.autograd.backward, Tensor.backward, torch._VF._make_dual}


class Seeing(TorchFunctionMode):
    """A function mode that also sees the calls inside PyTorch functions that are written in Python.

    Such a function first dispatches itself to the mode. It would do so again when the mode calls it, so a copy without
    dispatch is run instead.
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
                return self._without_dispatch(func)(*args, **kwargs)
        finally:
            self._running.pop()

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call, or NotImplemented to run it as it is."""
        raise NotImplementedError

    def _without_dispatch(self, func: FunctionType) -> FunctionType:
        if func not in self._copies:
            names = func.__globals__ | dict.fromkeys(_DISPATCH_CHECKS, lambda *_: False)
            copy = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
            copy.__kwdefaults__ = func.__kwdefaults__
            self._copies[func] = copy
        return self._copies[func]


def _in_transform(derivatives: bool = False) -> bool:
    """Whether the call is inside of a transform; with ``derivatives``, inside of another one than ``vmap``."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(not derivatives or level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


class Reads(Seeing):
    """Collects the nodes whose values Python reads without an operator.

    Args:
        within: whether to record operators inside of ``vmap``; if not, they raise :class:`Transforms`.
        differentiates: the same for derivatives.

    Attributes:
        nodes: the nodes, in the graph that is recorded.
        drawn: names of functions whose random draws became constants of the graph.
    """

    def __init__(self, within: bool = False, differentiates: bool = False) -> None:
        super().__init__()
        self._within, self._differentiates = within, differentiates
        self.nodes: list[fx.Node] = []
        self.drawn: list[str] = []

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace comparisons by operators and draws by constants; note other functions that read values."""
        name = getattr(func, "__name__", "")
        if get_proxy_mode() is None:  # not recorded
            return NotImplemented
        if not self._differentiates and (func in _DIFFERENTIATE or _in_transform(derivatives=True)):
            raise Transforms(differentiate=True)
        if not self._within and _in_transform():
            raise Transforms(differentiate=False)
        if draws(func, args, kwargs):
            self.drawn.append(name)
            with self:
                return draw(func, args, kwargs, self.note)
        if name in _COMPARED:
            with self:
                return _COMPARED[name](*args, **kwargs)
        if name in _READING:
            self.note(args[0])
        elif name in _FROM_LISTS:
            for numbers in args:
                for tensor in () if isinstance(numbers, Tensor) else pytree.tree_leaves(numbers):
                    self.note(tensor)
        elif func == _DATA:  # shares memory without an operator
            with self:
                return args[0].detach()
        return NotImplemented

    def note(self, tensor: Any) -> None:
        """Note that the value of a tensor was read."""
        mode = get_proxy_mode()
        if isinstance(tensor, Tensor) and mode is not None:
            slot: Any = get_proxy_slot(tensor, mode.tracer, None, lambda p: p)
            if slot is not None:
                self.nodes.append(slot.proxy.node)
