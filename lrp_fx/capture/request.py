"""What is to be captured: a model, a call of it, and what its runs leave behind."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from lrp_fx.capture.run_effects import RunEffects
from lrp_fx.capture.signature import Call


@dataclass(frozen=True)
class Request:
    """A model and a call of it, to be captured.

    Attributes:
        model: the model, or what stands in for it.
        args: positional arguments of the call.
        kwargs: its keyword arguments.
        call: the flat call.
        effects: undoes what runs of the model write.
        dynamic: whether dimensions may be dynamic.
        start: when the capture began (``time.perf_counter``).
    """

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: Call
    effects: RunEffects
    dynamic: bool = True
    start: float = field(default_factory=time.perf_counter)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments."""
        return self.args, self.kwargs

    @property
    def seconds(self) -> float:
        """Seconds since the capture began."""
        return time.perf_counter() - self.start
