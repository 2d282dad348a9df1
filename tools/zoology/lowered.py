"""What one row of the zoo is checked for beyond ``explain()``: other ways to the same relevance."""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from case import Built, NotBuildable
from check import _copied, _double, _double_tensor, _fails, _short
from torch import Tensor
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.errors import TargetError

BOUND, FLOAT32 = 1e-6, 1e-3


@dataclass
class LoweredRow:
    """One row.

    Attributes:
        difference: largest difference of a lowered graph to the relevance of ``explain``, of the largest relevance of
            that input.
        resized: the same with twice the samples, where the graph leaves their number free.
        many: the same of ``explain(targets=[...])``, where targets are classes.
        low: the same of ``explain(memory="low")``.
        lower_seconds: what lowering took.
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
    start, row = time.perf_counter(), LoweredRow("fail")
    try:
        built = build()
    except NotBuildable as error:
        return LoweredRow("not buildable", str(error))
    except Exception as error:
        return LoweredRow("not buildable", _short(error))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _check(built, row)
    except Exception as error:
        row.reason = _short(error, 300)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _check(built: Built, row: LoweredRow) -> None:
    model, args, kwargs = built.model, built.args, built.inputs
    bound = BOUND
    double, (wide_args, wide_kwargs) = _double(_copied(model)), pytree.tree_map(_double_tensor, (args, kwargs))
    if reason := _fails(double, wide_args, wide_kwargs):
        bound, row.note = FLOAT32, f"in float32 to {FLOAT32}: in float64 the model itself {reason}"
    else:
        model, args, kwargs = double, wide_args, wide_kwargs
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
    if lowered.served.mismatch(list(call.tensors.values())) is None and not _fails(model, more_args, more_kwargs):
        wanted = xmodel.explain(*more_args, target=built.target, **more_kwargs).relevance
        row.resized = _apart(lowered(*more_args, target=built.target, **more_kwargs).relevance, wanted)
    found = {k: d for k in ("difference", "resized", "many", "low") if (d := getattr(row, k)) is not None}
    row.verdict = "pass" if all(d <= bound for d in found.values()) else "fail"
    if row.verdict == "fail":
        row.reason = ", ".join(f"{k} {d:.1e}" for k, d in found.items())


def _apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    pairs = [(found[name].double(), r.double()) for name, r in wanted.items() if r.numel()]
    return max([float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs] or [0.0])


def _twice(leaf: Any) -> Any:
    """Two samples -> four."""
    two = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 2
    return torch.cat([leaf, leaf.flip(0)]) if two else leaf
