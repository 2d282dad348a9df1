"""Further checks of a row of the zoo: other ways to the relevance of ``explain()``."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from case import Built
from check import fails, in_float64, judged
from torch import Tensor
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.errors import TargetError


@dataclass
class LoweredRow:
    """One row.

    Attributes:
        difference: largest difference of a lowered graph to the relevance of ``explain``, of the largest relevance of
            that input.
        resized: the same with twice the samples, if the graph's batch is dynamic.
        many: the same for ``explain(targets=[...])``, if targets are classes.
        low: the same for ``explain(memory="low")``.
        lower_seconds: duration of lowering.
    """

    verdict: str
    reason: str = ""
    difference: float | None = None
    resized: float | None = None
    many: float | None = None
    low: float | None = None
    lower_seconds: float = 0.0
    note: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_lowered(build: Callable[[], Built]) -> LoweredRow:
    """Build a model, lower it and compare."""
    return judged(build, LoweredRow, _check)


def _check(built: Built, row: LoweredRow) -> None:
    model, args, kwargs, bound, row.note = in_float64(built)
    xmodel = lrp_fx.convert(model, *args, **kwargs)
    explain = functools.partial(xmodel.explain, *args, target=built.target, **kwargs)
    wanted = explain().relevance
    begun = time.perf_counter()
    lowered = xmodel.lower(*args, target=built.target, **kwargs)
    row.lower_seconds = round(time.perf_counter() - begun, 1)
    row.difference = _apart(lowered(*args, target=built.target, **kwargs).relevance, wanted)
    row.low = _apart(explain(memory="low").relevance, wanted)
    if built.target is None:
        with contextlib.suppress(TargetError):  # of outputs with more dimensions than positions and classes
            many = xmodel.explain(*args, targets=[None, None], **kwargs).relevance
            row.many = _apart({name: r[1] for name, r in many.items()}, wanted)
    more_args, more_kwargs = pytree.tree_map(_twice, (args, kwargs))
    call = lowered.read(more_args, more_kwargs)
    if lowered.guards.mismatch(list(call.tensors.values())) is None and not fails(model, more_args, more_kwargs):
        wanted = xmodel.explain(*more_args, target=built.target, **more_kwargs).relevance
        row.resized = _apart(lowered(*more_args, target=built.target, **more_kwargs).relevance, wanted)
    differences = {k: d for k in ("difference", "resized", "many", "low") if (d := getattr(row, k)) is not None}
    row.verdict = "pass" if all(d <= bound for d in differences.values()) else "fail"
    if row.verdict == "fail":
        row.reason = ", ".join(f"{k} {d:.1e}" for k, d in differences.items())


def _apart(actual: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    pairs = [(actual[name].double(), r.double()) for name, r in wanted.items() if r.numel()]
    return max([float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs] or [0.0])


def _twice(leaf: Any) -> Any:
    """Two samples -> four."""
    two = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 2
    return torch.cat([leaf, leaf.flip(0)]) if two else leaf
