"""Further checks of a row of the zoo: other sizes, comparison with autograd, half precision."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from case import Built
from check import CONSERVATION, fails, judged, projection, short
from gradient import GRADIENT, Undifferentiable, against_autograd, apart
from sizes import TOKENS, Sized, longer, one_sample
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.capture.conventions import traceable
from lrp_fx.errors import LrpError
from lrp_fx.explain.reading import find_logits
from lrp_fx.testing.measure import FLOAT32

CORRELATION, SUM = 0.9, 0.1  #: smallest correlation of relevance in bfloat16 with relevance in float64
PATIENCE = 60  #: seconds of processor time after which a row starts no further column


@dataclass
class FurtherRow:
    """One row. A column is a number, or None where ``untried`` says why.

    Attributes:
        one_sample: largest difference at one sample, captured at two: outputs to the model's, of the largest; relevance
            to a fresh conversion's, of the largest.
        longer: the same at 70 tokens, or at a larger image or a longer sound.
        longest: the same at 130 tokens, or at a wider image.
        gradient: largest difference of relevance under rules="gradient" to autograd's input x gradient.
        half_sum: difference of the sum of relevance in bfloat16 to that in float64, of the sum of magnitudes.
        half_correlation: of the relevance of all inputs in bfloat16 with that in float64.
        half_gradient: that correlation of input x gradient, for comparison.
        half_default: that correlation under the default rules, which have no pole where a sigmoid's argument is 0.
        sizes: what "longer" and "longest" were.
        untried: column -> why it was not tried.
        captures: number of captures for the three sizes.
    """

    verdict: str
    reason: str = ""
    one_sample: float | None = None
    longer: float | None = None
    longest: float | None = None
    gradient: float | None = None
    half_sum: float | None = None
    half_correlation: float | None = None
    half_gradient: float | None = None
    half_default: float | None = None
    sizes: list[str] = field(default_factory=list)
    untried: dict[str, str] = field(default_factory=dict)
    captures: int = 0
    note: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_further(build: Callable[[], Built]) -> FurtherRow:
    """Build a model and check it further."""
    return judged(build, FurtherRow, _check)


def _check(built: Built, row: FurtherRow) -> None:
    begun = time.process_time()
    half, reason = _half(built)
    model, args, kwargs = _double(built, half)
    tolerances = (CONSERVATION, GRADIENT)
    if failing := fails(model, args, kwargs):
        row.note = f"in float32: in float64 the model itself {failing}"
        model, args, kwargs, tolerances = built.model, built.args, built.inputs, (FLOAT32, FLOAT32)
        if fails(model, args, kwargs):
            row.verdict, row.reason = "not tried", f"in float64 the model itself {failing}"
            return
    xmodel = lrp_fx.convert(model, *args, **kwargs)
    target = built.target or _classes(xmodel, args, kwargs)
    wrong: list[str] = []

    def attempt(column: str, run: Callable[[], str]) -> None:
        """Fill one column; ``run`` returns the failure, or an empty text."""
        if time.process_time() - begun > PATIENCE:
            row.untried[column] = f"the row had taken {PATIENCE} s of computing"
            return
        try:
            verdict = run()
        except LrpError as error:
            verdict = short(error, 200)
        except _Untried as error:
            row.untried[column] = str(error)
            return
        if verdict:
            wrong.append(f"{column}: {verdict}")

    attempt("one_sample", lambda: _at(row, "one_sample", xmodel, [one_sample(args, kwargs)], built, tolerances[0]))
    for column, tokens in zip(("longer", "longest"), TOKENS, strict=True):
        sized = longer(args, kwargs, tokens)
        attempt(column, lambda column=column, sized=sized: _at(row, column, xmodel, sized, built, tolerances[0]))
    attempt("gradient", lambda: _gradient(row, xmodel, model, args, kwargs, target, tolerances[1]))
    attempt("half", lambda: _in_half(row, xmodel, half, reason, (args, kwargs), target, built))
    row.captures = len(xmodel.captures)
    row.verdict, row.reason = ("fail" if wrong else "pass"), "; ".join(wrong)


class _Untried(Exception):
    """The reason why a column is not tried."""


def _half(built: Built) -> tuple[nn.Module | None, str]:
    """The model in bfloat16, or why it does not run in it."""
    try:
        half = copy.deepcopy(built.model).bfloat16()
    except Exception as error:
        return None, short(error, 80)
    failing = fails(half, *pytree.tree_map(lambda t: _cast(t, torch.bfloat16), (built.args, built.inputs)))
    return (None, f"in bfloat16 the model itself {failing}") if failing else (half, "")


def _double(built: Built, half: nn.Module | None) -> tuple[nn.Module, Any, Any]:
    """The model in float64, with weights and inputs rounded to bfloat16."""
    try:
        model = copy.deepcopy(half or built.model).double()
    except Exception:  # some modules cannot be copied
        model = built.model.double()
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
    inputs = pytree.tree_map(lambda t: _cast(t, torch.bfloat16), (built.args, built.inputs))
    return model, *pytree.tree_map(lambda t: _cast(t, torch.float64), inputs)


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _classes(xmodel: Any, args: Any, kwargs: Any) -> Any:
    """Each sample's largest logit as a function of the output that does not look for it again; of an output that is no
    row of classes and no sequence of them, a random projection."""
    with torch.no_grad():
        logits = find_logits(xmodel(*args, **kwargs))
    if logits.dim() < 2 or logits.dim() > 3:
        return projection
    last = logits if logits.dim() == 2 else logits[:, -1]
    best = last.argmax(-1)

    def chosen(output: Any) -> Tensor:
        logits = find_logits(output)
        logits = logits if logits.dim() == 2 else logits[:, -1]
        return logits[torch.arange(len(logits)), best[: len(logits)]]

    return chosen


def _at(
    row: FurtherRow,
    column: str,
    xmodel: Any,
    candidates: Iterable[Sized | None],
    built: Built,
    tolerance: float = CONSERVATION,
) -> str:
    """Outputs and relevance at another size, against the model and a fresh conversion."""
    model, failing = xmodel.model, "no such size"
    for sized in candidates:
        if sized is None:
            raise _Untried("the inputs are no batch of two")
        if not (failing := fails(model, sized.args, sized.kwargs)):
            break
    else:
        raise _Untried(f"the model itself {failing}" if failing != "no such size" else failing)
    row.sizes.append(sized.label)
    with torch.no_grad(), traceable(model, experts=None):
        wanted = _tensors(model(*sized.args, **sized.kwargs))
    returned = _tensors(xmodel(*sized.args, **sized.kwargs))
    target = built.target or _classes(xmodel, sized.args, sized.kwargs)
    relevance = xmodel.explain(*sized.args, target=target, **sized.kwargs).relevance
    outputs = apart(dict(enumerate(returned)), dict(enumerate(wanted)))
    fresh = lrp_fx.convert(model, *sized.args, **sized.kwargs)
    against = apart(relevance, fresh.explain(*sized.args, target=target, **sized.kwargs).relevance)
    setattr(row, column, max(outputs, against))
    told = [f"{what} {d:.1e} apart" for what, d in (("outputs", outputs), ("relevance", against)) if not d <= tolerance]
    return f"at {sized.label} {', '.join(told)}" if told else ""


def _tensors(value: Any) -> list[Tensor]:
    leaves, spec = pytree.tree_flatten(value)
    value = pytree.tree_unflatten(leaves, spec)  # an output may be built again with its fields in another order
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]


def _gradient(
    row: FurtherRow, xmodel: Any, model: nn.Module, args: Any, kwargs: Any, target: Any, tolerance: float
) -> str:
    try:
        row.gradient, told = against_autograd(xmodel, model, args, kwargs, target, tolerance=tolerance)
    except Undifferentiable as error:
        raise _Untried(str(error)) from error
    return told


def _in_half(
    row: FurtherRow, xmodel: Any, half: nn.Module | None, reason: str, inputs: Any, target: Any, built: Built
) -> str:
    if half is None:
        raise _Untried(reason)
    args, kwargs = pytree.tree_map(lambda t: _cast(t, torch.bfloat16), inputs)
    xhalf = lrp_fx.convert(half, *args, **kwargs)

    def compared(rules: str) -> tuple[float, float]:
        wide = xmodel.explain(*inputs[0], target=target, rules=rules, **inputs[1]).relevance
        narrow = xhalf.explain(*args, target=target, rules=rules, **kwargs).relevance
        a, b = (torch.cat([r[n].double().flatten() for n in wide]) for r in (narrow, wide))
        return float((a.sum() - b.sum()).abs() / b.abs().sum().clamp(min=1e-300)), _correlation(a, b)

    row.half_sum, row.half_correlation = compared("attnlrp")
    row.half_gradient, row.half_default = compared("gradient")[1], compared("default")[1]
    if row.half_correlation >= CORRELATION and row.half_sum <= SUM:
        return ""
    if row.half_gradient < row.half_correlation + 0.05:  # a router or a maximum that decides otherwise
        row.untried["half"] = "in bfloat16 the model's own gradient differs as much"
        return ""
    others = f"{row.half_gradient:.3f} of the gradient, {row.half_default:.4f} under the default rules"
    return f"in bfloat16 sums differ by {row.half_sum:.0%}, correlation {row.half_correlation:.3f} ({others})"


def _correlation(a: Tensor, b: Tensor) -> float:
    norm = a.norm() * b.norm()
    return float((a @ b) / norm) if norm > 0 else float(torch.equal(a, b))
