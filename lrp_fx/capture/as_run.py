"""Loops that an export would write out: a :class:`Watch` notices them early.

A library may replace an operator that few exporters know by a loop over rows (``if is_exporting(): for i in ...``).
The export would describe another computation than the model runs, at a hundred times the nodes. The modules that run
such a loop are exported by the code that they run otherwise.

A loop over time has as many steps as an input has entries; such a model is captured by :mod:`lrp_fx.capture.loops`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from types import FrameType, FunctionType
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lrp_fx.capture.repeated.answering import class_of

TURNS = 12  #: number of times that one call of a module runs an instruction before it counts as a loop
TORCH_FOLDER = f"{torch.__path__[0]}/"
_ASKS = frozenset({"is_exporting", "is_compiling"})


class LoopSeen(Exception):
    """A module that asks whether it is exported runs a loop."""


class OverTime(Exception):
    """A model runs a loop over time.

    Args:
        lengths: sizes of inputs that may be the number of steps.
        kinds: classes of modules that are exported as they run otherwise.
    """

    def __init__(self, lengths: tuple[int, ...], kinds: frozenset[type]) -> None:
        super().__init__(f"a loop over time, of {' or '.join(map(str, lengths))} steps")
        self.lengths, self.kinds = lengths, kinds


class Watch:
    """Watches an export for loops.

    Args:
        kinds: classes of modules that are exported as they run otherwise.
        over_time: whether to look for loops over time.

    Attributes:
        seen: the class of the module with the first such loop, if there was one.
    """

    def __init__(self, kinds: frozenset[type], over_time: bool) -> None:
        self.kinds, self.over_time = kinds, over_time
        self.seen: type | None = None
        self._open: list[tuple[torch.nn.Module, Counter[Any]]] = []

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """In this context, module calls are noted, and modules of ``kinds`` run as if they were not exported."""
        flags: list[tuple[bool, bool]] = []
        thread = threading.get_ident()

        def enter(module: torch.nn.Module, args: Any) -> None:
            if threading.get_ident() != thread:
                return
            flags.append(_flags())  # before an error, as ``leave`` follows in any case
            if class_of(module) in self.kinds:
                _set_flags(False, False)
            if get_proxy_mode() is None:  # a run aside
                return
            around = self._open[-1:]
            self._open.append((module, Counter()))
            for _, counts in around:
                self._count(counts, module)

        def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
            if threading.get_ident() != thread:
                return
            _set_flags(*flags.pop())
            if get_proxy_mode() is not None:
                self._open.pop()

        with contextlib.ExitStack() as hooks:
            hooks.callback(register_module_forward_pre_hook(enter).remove)
            hooks.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield

    def step(self, frame: FrameType) -> None:
        """Note a call of an operator from ``frame``.

        Raises:
            LoopSeen, OverTime: at the :data:`TURNS`-th call from one place within a call of a module.
        """
        caller = _caller(frame)
        if not self._open or caller is None:
            return
        module, counts = self._open[-1]
        kind = class_of(module)
        if self._count(counts, (caller.f_code, caller.f_lasti)) and kind not in self.kinds and _asks(caller):
            self.seen = kind
            raise LoopSeen(f"{kind.__name__} runs a loop because it is exported")

    def _count(self, counts: Counter[Any], place: Any) -> bool:
        """Count what a call of a module does; whether it was done :data:`TURNS` times.

        Raises:
            OverTime: if so, and the size of an input is fixed.
        """
        counts[place] += 1
        if counts[place] == TURNS and self.over_time and (lengths := _lengths()):
            raise OverTime(lengths, self.kinds)
        return counts[place] == TURNS


def _lengths() -> tuple[int, ...]:
    """Sizes of inputs that the export under way has fixed."""
    mode = detect_fake_mode()
    environment = None if mode is None else mode.shape_env
    fixed = () if environment is None else environment.replacements.values()
    return tuple(dict.fromkeys(int(size) for size in fixed if size.is_Integer and size >= TURNS))


def _flags() -> tuple[bool, bool]:
    return torch.compiler._is_exporting_flag, torch.compiler._is_compiling_flag


def _set_flags(exporting: bool, compiling: bool) -> None:
    torch.compiler._is_exporting_flag, torch.compiler._is_compiling_flag = exporting, compiling


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside of PyTorch."""
    while frame is not None and frame.f_code.co_filename.startswith(TORCH_FOLDER):
        frame = frame.f_back
    return frame


def _asks(frame: FrameType | None) -> bool:
    """Whether a function between an operator and the ``forward`` of its module asks if it is exported."""
    while frame is not None:
        code = frame.f_code
        called = (frame.f_globals.get(name) for name in code.co_names)
        codes = (code, *(f.__code__ for f in called if isinstance(f, FunctionType)))
        if any(_ASKS & {*c.co_names} for c in codes):
            return True
        if code.co_name == "forward":
            return False
        frame = frame.f_back
    return False
