"""The source line of every node, recorded while a graph is traced.

PyTorch formats the whole Python stack of every node, which takes a quarter of the time of an export, and
``lrp_fx.graph.location`` reads one line of it.
"""

from __future__ import annotations

import dataclasses
import functools
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import uninteresting_files
from torch.overrides import TorchFunctionMode

from lrp_fx.capture.as_run import TORCH_FOLDER, Watch
from lrp_fx.status import traced


class SourceLines(TorchFunctionMode):
    """In this context every traced node gets the line of the innermost ``forward`` on the Python stack.

    Args:
        watch: is told of every traced call.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        super().__init__()
        self.watch = watch
        self._placed = 0  #: number of fixed sizes whose line was looked at

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **(kwargs or {}))
        nodes = mode.tracer.graph.nodes
        last = next(reversed(nodes), None)
        result = func(*args, **(kwargs or {}))
        traced(len(nodes))
        if self.watch is not None and next(reversed(nodes), None) is not last:
            self.watch.step(sys._getframe(1))
        self._place_fixed_sizes(result, sys._getframe(1))
        line = None
        for node in reversed(nodes):
            if node is last:
                break
            line = _line(sys._getframe(1)) if line is None else line
            if line:
                node.meta.setdefault("stack_trace", line)
        return result

    def _place_fixed_sizes(self, result: Any, frame: FrameType) -> None:
        """Name the line of the model for sizes that a call has fixed; PyTorch names a line of its own code."""
        environment = result.fake_mode.shape_env if isinstance(result, FakeTensor) else None
        places = {} if environment is None else environment.replacements_slocs
        if len(places) != self._placed:
            self._placed = len(places)
            forwards = list(_forwards(frame))
            forward = next(
                (f for f in forwards if not _is_of_torch(f.f_code.co_filename)), forwards[0] if forwards else None
            )
            line = forward and f"{forward.f_code.co_filename}:{forward.f_lineno} in forward"
            for symbol, place in list(places.items()):
                if place.maybe_user_loc is None and _is_of_torch(getattr(place.framework_loc, "filename", "")):
                    places[symbol] = dataclasses.replace(place, maybe_user_loc=line)


@contextmanager
def without_stacks() -> Iterator[None]:
    """In this context PyTorch's tracers record no stacks."""
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


def _line(frame: FrameType) -> str:
    """The innermost frame of a ``forward``, formatted as in a traceback; "" without one."""
    forward = next(_forwards(frame), None)
    return "" if forward is None else _text(forward.f_code.co_filename, forward.f_lineno)


def _forwards(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a ``forward`` outside of PyTorch's tracers, the innermost first."""
    plumbing = _plumbing()
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_code.co_filename not in plumbing:
            yield frame
        frame = frame.f_back


def _is_of_torch(file: str) -> bool:
    return file.startswith(TORCH_FOLDER)


@functools.lru_cache(4096)
def _text(file: str, line: int) -> str:
    return f'File "{file}", line {line}, in forward\n    {linecache.getline(file, line).strip()}'


@functools.cache
def _plumbing() -> frozenset[str]:
    return frozenset(uninteresting_files())
