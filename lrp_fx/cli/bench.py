"""`lrp-fx bench`: time of explanations beside the model's forward pass and gradient."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from lrp_fx.cli.models import Loaded
from lrp_fx.explain.reading import find_logits


@dataclass(frozen=True)
class Timing:
    """Time of one function.

    Attributes:
        name: its name.
        first: seconds of the first call, with capture and first check.
        fastest: seconds of the fastest later call.
    """

    name: str
    first: float
    fastest: float


def measured(loaded: Loaded, raw: tuple[Any, ...], rules: Sequence[str], repeat: int, compiled: bool) -> list[Timing]:
    """Timings of a forward pass, of forward and backward, and of explanations, on the same inputs."""
    xmodel = loaded.converted(rules[0])
    args, inputs, _ = xmodel.encoded(raw, {})
    model = loaded.model

    def forward() -> None:
        with torch.no_grad():
            model(*args, **inputs)

    def gradient() -> None:
        logits = find_logits(model(*args, **inputs))
        parameters = [p for p in model.parameters() if p.requires_grad][:1]  # the first: the sweep goes all the way
        torch.autograd.grad(logits.reshape(-1).max(), parameters, allow_unused=True)

    timings = [_timed("forward", forward, repeat), _timed("forward and gradient", gradient, repeat)]
    for name in rules:
        explain = functools.partial(xmodel.explain, *args, rules=name, **inputs)
        timings.append(_timed(f"explain, {name}", explain, repeat))
    for name in rules if compiled else ():
        graph = xmodel.lower(*args, rules=name, **inputs).compile()
        timings.append(_timed(f"compiled, {name}", functools.partial(graph, *args, **inputs), repeat))
    return timings


def _timed(name: str, call: Callable[[], Any], repeat: int) -> Timing:
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_initialized():  # its kernels run on after the call
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Timing(name, seconds[0], min(seconds[1:]))


def bench_table(timings: Sequence[Timing]) -> Table:
    """Milliseconds, and the ratio to forward and gradient."""
    table = Table(box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    for heading in ("first, ms", "fastest, ms", "of forward and gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
    unit = next(t.fastest for t in timings if t.name == "forward and gradient")
    for t in timings:
        table.add_row(t.name, f"{1000 * t.first:.1f}", f"{1000 * t.fastest:.2f}", f"{t.fastest / unit:.2f}")
    return table
