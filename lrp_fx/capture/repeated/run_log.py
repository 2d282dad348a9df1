"""A log of what a run computes, without its values: calls of PyTorch, operators, and decisions on sizes.

Two blocks with equal logs are traced alike: they do the same with the same of their inputs. Tensors are numbered by
their memory, so that views and writes in place need no further care. Sizes of tensors are ``torch.SymInt``, as in a
trace, and note what is computed from them and what is decided by them, so that blocks are told apart by a limit that
has no effect at the sizes of the example.

A function of PyTorch does by its arguments and PyTorch's settings alone what it does. The log has its call and not its
operators, and the next call that is alike gets new tensors without a run (:mod:`results`).
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lrp_fx.capture.repeated.logged_numbers import SYMBOLS, NotLogged, logged_number, plain, without_symbols
from lrp_fx.capture.repeated.results import HISTORY, HistoryRead, Results, memory_of, tensors_of

_SMALL = 64  #: largest number of entries of a literal that is described by its values
_LITERALS: frozenset[Any] = frozenset({torch.tensor, Tensor.new_tensor})  #: functions of literals alone
#: what makes a tensor of literals: no one else has it, so its values cannot change between runs
_FROM_LITERALS: frozenset[Any] = _LITERALS | {Tensor.__setitem__}
_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
_IN_PYTHON = frozenset({"torch.nn.functional", "torch._tensor", "torch.functional"})  #: modules of PyTorch's functions
_IN_C = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_BY_VALUE = (bool, int, float, complex, str, bytes)
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(None), type(Ellipsis))

#: what asks a tensor for sizes
_SIZES: frozenset[Any] = frozenset(
    {Tensor.size, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.storage_offset, torch.numel}
    | {Tensor.shape.__get__, Tensor.nbytes.__get__}  # type: ignore[attr-defined]
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One thing that a run does.

    Attributes:
        what: the function, literals, and forms of tensors.
        operands: numbers of the tensors, sizes and other objects that it takes.
        results: numbers of those that it returns.
    """

    what: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclass
class RunLog:
    """The log of a run.

    Attributes:
        entries: what the run does, in order.
        most: largest number of entries; who logs a run raises it.
        results: the results of the functions of the run, if new tensors may take the place of further ones.
    """

    entries: list[Entry] = field(default_factory=list)
    most: int = 0
    results: Results | None = None
    _numbers: dict[int, int] = field(default_factory=dict)  # memory, or id of a size -> number
    _meanings: dict[int, Any] = field(default_factory=dict)  # number -> what it means in any run
    _alive: list[Any] = field(default_factory=list)  # so that no memory is used twice
    _paused: bool = False
    _from_literals: bool = False  # whether the function that runs makes a tensor of literals

    @contextmanager
    def written(self) -> Iterator[None]:
        """In this context the run of this thread is logged."""
        with _Calls(self), _Operators(self):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In this context nothing is logged."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def add(self, what: Any, operands: Sequence[int], results: Sequence[int]) -> None:
        """Add an entry.

        Raises:
            NotLogged: if there are too many.
        """
        if len(self.entries) >= self.most:
            raise NotLogged
        self.entries.append(Entry(what, tuple(operands), tuple(results)))

    def described(self, value: Any, numbers: list[int]) -> Any:
        """The form of a value, to be compared with that of another one; its numbers are appended to ``numbers``."""
        if (kind := type(value)) in _BY_VALUE:
            return (kind, repr(value))
        if isinstance(value, Tensor):
            numbers.append(self._number_of(value))
            place = (value.storage_offset(), value.shape, value.stride())
            return (*place, value.dtype, value.device.type, value.requires_grad)
        if isinstance(value, SYMBOLS):
            numbers.append(self.number_of_size(value))
            return ("size", plain(value))
        if isinstance(value, (list, tuple)):
            return (kind, *[self.described(item, numbers) for item in value])
        if isinstance(value, dict):
            return ("dict", *[(key, self.described(item, numbers)) for key, item in value.items()])
        if isinstance(value, slice):
            return ("slice", *[self.described(item, numbers) for item in (value.start, value.stop, value.step)])
        if isinstance(value, _BY_VALUE):
            return (kind, repr(value))
        if isinstance(value, _NAMED):
            return value
        numbers.append(self._number(id(value), value, ("object", id(value))))
        return kind

    def new_size(self, value: Any) -> Any:
        """A plain number as a symbolic one that logs what is done with it."""
        return logged_number(self, value)

    @property
    def count(self) -> int:
        """Number of tensors, sizes and other objects so far."""
        return len(self._alive)

    def meaning(self, number: int) -> Any:
        """The meaning of a number outside of the run: ("literal", values) of a small tensor, ("memory", place) of any
        other tensor, ("size", identity), or ("object", identity).
        """
        return self._meanings[number]

    def is_size(self, number: int) -> bool:
        """Whether a number is of a size."""
        return bool(self._meanings[number][0] == "size")

    def is_object(self, number: int) -> bool:
        """Whether a number stands for an object that is told apart by its identity alone."""
        return bool(self._meanings[number][0] == "object")

    def _number_of(self, tensor: Tensor) -> int:
        memory = memory_of(tensor)
        return self._numbers.get(memory) or self._number(memory, tensor, ("memory", memory))

    def add_literals(self, tensor: Any) -> None:
        """Describe a small tensor by its values, if it was just made of literals."""
        if self._from_literals and type(tensor) is Tensor and not tensor.is_meta and tensor.numel() <= _SMALL:
            memory = memory_of(tensor)
            with _disable_current_modes():
                self._number(memory, tensor, ("literal", str(tensor.tolist())))

    def number_of_size(self, size: Any) -> int:
        """The number of a size."""
        return self._number(id(size.node), size.node, ("size", id(size.node)))

    def _number(self, identity: int, value: Any, meaning: Any) -> int:
        if identity not in self._numbers:
            self._alive.append(value)
            self._numbers[identity] = len(self._alive)
            self._meanings[len(self._alive)] = meaning
        return self._numbers[identity]


def settings() -> tuple[Any, ...]:
    """The settings of PyTorch that the result of a function depends on."""
    cast = tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))
    attention = (
        torch._C._get_math_sdp_enabled(), torch._C._get_flash_sdp_enabled(), torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_cudnn_sdp_enabled(),
    )  # fmt: skip
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), cast, attention)


class _Calls(TorchFunctionMode):
    """Logs the calls of PyTorch in Python."""

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Log one call."""
        log, kwargs = self.log, kwargs or {}
        if log._paused or getattr(func, "__name__", "").startswith("sym_"):  # a method of a size, which is logged
            return func(*args, **kwargs)
        if log.results is not None and func in HISTORY:
            raise HistoryRead
        operands: list[int] = []
        with torch._C.DisableTorchFunction():
            arguments = (args, sorted(kwargs.items()))
            what = log.described(arguments, operands)
            if any(map(log.is_size, operands)):
                args, kwargs = without_symbols(args), without_symbols(kwargs)
            call = (func, what, settings())
        if log.results is None or not _is_pure(func) or func in _LITERALS:
            result = self._run(call, operands, args, kwargs)
        else:
            result = self._run_once(log.results, call, operands, arguments, args, kwargs)
        results: list[int] = []
        with torch._C.DisableTorchFunction():
            log.add((*call, log.described(result, results)), operands, results)
        return result

    def _run_once(
        self, earlier: Results, call: Any, operands: list[int], arguments: Any, args: Any, kwargs: Any
    ) -> Any:
        """The result of a function of PyTorch; new tensors if a call that was alike has been run.

        Args:
            earlier: the results of earlier calls.
            call: the function, the form of its arguments, and the settings of PyTorch.
            operands: the numbers in that form.
            arguments: the arguments as they are logged, with symbolic sizes.
            args: positional arguments with plain sizes.
            kwargs: keyword arguments with plain sizes.
        """
        log, first = self.log, len(self.log.entries)
        with torch._C.DisableTorchFunction():
            names: dict[int, int] = {}
            key = (*call, *[names.setdefault(number, len(names)) for number in operands])
            tensors = [*tensors_of((args, kwargs))]
            again = earlier.again(key, tensors)
        if again is not None:
            return again[0]
        result = self._run(call, operands, args, kwargs)
        with torch._C.DisableTorchFunction():
            after: list[int] = []
            unchanged = log.described(arguments, after) == call[1] and after == operands
            if unchanged and not any(map(log.is_object, operands)) and earlier.remember(key, tensors, result):
                del log.entries[first:]
        return result

    def _run(self, call: Any, operands: list[int], args: Any, kwargs: Any) -> Any:
        """The result of a call; sizes are symbolic."""
        log, (func, what, _) = self.log, call
        around, log._from_literals = log._from_literals, func in _FROM_LITERALS
        # tensors that were made without a run are leaves, into which nothing is written while gradients are enabled
        writes = log.results is not None and _writes(func, args, kwargs) and args[0].requires_grad
        try:
            with torch.no_grad() if writes else nullcontext():
                result = _returned(log, func, what, operands, args, kwargs)
        finally:
            log._from_literals = around
        if func in _SIZES:
            return log.new_size(result) if type(result) is int else torch.Size(map(log.new_size, result))
        return result


class _Operators(TorchDispatchMode):
    """Logs the operators."""

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Log one operator."""
        log, kwargs = self.log, kwargs or {}
        if log._paused or func.namespace == "prim":  # a question about a tensor, such as its device
            return func(*args, **kwargs)
        operands: list[int] = []
        results: list[int] = []
        with torch._C.DisableTorchFunction():
            if func is torch.ops.aten.lift_fresh.default:
                log.add_literals(args[0])
            what = log.described((args, sorted(kwargs.items())), operands)
        result = _returned(log, func, what, operands, args, kwargs)
        with torch._C.DisableTorchFunction():
            log.add((func, what, log.described(result, results)), operands, results)
        return result


def _is_pure(func: Any) -> bool:
    """Whether a function is PyTorch's own: it reads nothing but its arguments and the settings of PyTorch."""
    if torch._C._functorch.peek_interpreter_stack() is not None:  # under vmap, it reads the levels, too
        return False
    return isinstance(func, _IN_C) or (isinstance(func, types.FunctionType) and func.__module__ in _IN_PYTHON)


def _writes(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function of PyTorch writes into its first argument, a tensor."""
    if not args or not isinstance(args[0], Tensor) or not _is_pure(func):
        return False
    if isinstance(func, types.FunctionType):
        code = func.__code__
        return bool({**dict(zip(code.co_varnames, args, strict=False)), **kwargs}.get("inplace"))
    name = func.__name__
    return bool(name == "__setitem__" or (name.endswith("_") and not name.endswith("__")))


def _returned(log: RunLog, func: Any, what: Any, operands: list[int], args: Any, kwargs: Any) -> Any:
    """The result of a function; an error is logged, as the caller may catch it."""
    try:
        return func(*args, **kwargs)
    except Exception as error:
        if log.results is not None and not isinstance(error, _NEEDS_VALUES):
            raise HistoryRead from error
        log.add((func, what, type(error)), operands, ())
        raise
