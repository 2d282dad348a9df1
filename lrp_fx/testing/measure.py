"""Measurements of a check: outputs in the model's precision, conservation at every node in float64, and from outside.

Conservation from outside does not use the accounts of nodes: with every bias at 0, under rules with constant attention
weights, relevance of inputs, sources and literals sums to the target.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lrp_fx.capture.conventions import copied_inputs, loop_over_experts, preserved, traceable
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import LrpError
from lrp_fx.explain import Target
from lrp_fx.explain.reading import find_logits
from lrp_fx.module import ExplainableModule
from lrp_fx.results import Attribution
from lrp_fx.testing.result import Measured
from lrp_fx.verify import Verification

#: tolerances of outputs; of sums in float64; of sums for models that run in float32 only
FORWARD, CONSERVATION, FLOAT32 = 1e-5, 1e-6, 1e-3
_MASKED = 1e30  #: logits of this magnitude or larger are masked, and do not count

Ops = str | Path | Mapping[str, Any] | None
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


def measure_outputs(
    measured: Measured,
    model: nn.Module,
    args: Arguments,
    kwargs: Keywords,
    rules: RuleSource = "default",
    ops: Ops = None,
) -> ExplainableModule:
    """Convert a model in its precision and compare outputs; returns the converted model."""
    xmodel = convert(model, *args, rules=rules, ops=ops, **kwargs)
    captured = xmodel.current.captured
    measured.route = captured.route
    measured.nodes, measured.capture_seconds = len(captured.graph_module.graph.nodes), round(captured.seconds, 1)
    measured.roles = dict(Counter(d.role for d in xmodel.current.under(xmodel.ruleset).plan.decisions.values()))
    measured.forward = _forward_difference(model, xmodel, args, kwargs)
    measured.specialised = list(xmodel.report().specialised)
    return xmodel


def measure_sums(
    measured: Measured,
    model: nn.Module,
    args: Arguments,
    kwargs: Keywords,
    *,
    target: Target = None,
    rules: RuleSource = "default",
    outside: RuleSource = "cp_lrp",
    ops: Ops = None,
    disposable: bool = False,
) -> Verification:
    """Measure conservation on a copy of a model, in float64 if it runs there; returns the verification.

    Args:
        measured: receives the numbers.
        model: the model.
        args: its inputs.
        kwargs: its inputs by keyword.
        target: as in ``explain``; None for :func:`projection`.
        rules: the rule set for the verification node by node.
        outside: the rule set for conservation from outside.
        ops: further op declarations.
        disposable: whether a model that cannot be copied may be changed itself.

    Raises:
        NoCopyError: for a model that cannot be copied and is not ``disposable``.
    """
    model, args, kwargs, measured.tolerance, measured.note = in_float64(model, args, kwargs, disposable)
    xmodel = convert(model, *args, rules=outside, ops=ops, **kwargs)
    aim = projection if target is None else target
    verification = xmodel.verify(*args, target=aim, rules=rules, **kwargs)
    measured.role_defect = max([r.defect for r in verification.roles], default=0.0)
    attribution = _explain_without_biases(xmodel, args, kwargs, aim)
    ledger = attribution.ledger
    inputs = sum(float(r.double().sum()) for r in attribution.relevance.values())
    measured.literals = ledger["constant"] / (abs(ledger.target) or 1)
    rest = ledger.target - inputs - ledger["source"] - ledger["constant"]
    measured.conservation = abs(rest) / (abs(ledger.target) or 1e-300)
    measured.amounts, measured.inputs = ledger.by("category"), len(attribution.relevance)
    measured.silent = [name for name, r in attribution.relevance.items() if not bool(r.any())]
    return verification


def shortcomings(measured: Measured) -> list[tuple[str, str]]:
    """(kind, text) of every measurement beyond its tolerance."""
    failures = []
    if _beyond(measured.forward, FORWARD):
        failures.append(("outputs", f"outputs differ by {measured.forward:.1e}"))
    if _beyond(measured.conservation, measured.tolerance):
        where = ", ".join(f"{k} {v:.2g}" for k, v in measured.amounts.items())
        failures.append(("conservation", f"conservation defect {measured.conservation:.1e} ({where})"))
    if _beyond(measured.role_defect, measured.tolerance):
        failures.append(("node", f"a node does not conserve: {measured.role_defect:.1e}"))
    if measured.inputs and len(measured.silent) == measured.inputs:
        failures.append(("relevance", "no input receives relevance"))
    return failures


def _beyond(number: float | None, bound: float) -> bool:
    return number is not None and not number <= bound


class NoCopyError(LrpError):
    """A model that cannot be copied cannot be checked in another precision or with other weights."""


def in_float64(
    model: nn.Module, args: Arguments, kwargs: Keywords, disposable: bool = False
) -> tuple[nn.Module, Arguments, Keywords, float, str]:
    """(copy of the model, arguments, keywords, tolerance, note): in float32, with a note, if it fails in float64.

    Raises:
        NoCopyError: for a model that cannot be copied and is not ``disposable``.
    """
    double = _copied(model, disposable).double()
    loop_over_experts(double)
    wide_args, wide_kwargs = pytree.tree_map(_double, (args, dict(kwargs)))
    if reason := fails(double, wide_args, wide_kwargs):
        note = f"checked in float32 to {FLOAT32}: in float64 the model itself {reason}"
        return _copied(model, disposable), args, kwargs, FLOAT32, note
    return double, wide_args, wide_kwargs, CONSERVATION, ""


def _copied(model: nn.Module, disposable: bool) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # some modules cannot be copied
        if disposable:
            return model
        raise NoCopyError(f"the model cannot be copied ({short(error, 80)})") from error


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def projection(output: Any) -> Tensor:
    """A fixed random linear functional of the whole output: every position and class takes part.

    Masked entries do not count. The sum is in double precision, since some models return float32 logits in every
    precision.
    """
    logits = find_logits(output)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits.device)
    finite = logits.abs() < _MASKED
    return (torch.where(finite, logits, 0.0).double() * weights.double()).sum().reshape(1)


def fails(model: nn.Module, args: Arguments, kwargs: Keywords) -> str:
    """Why a model does not run, or has no finite output; "" if it does."""
    try:
        with torch.no_grad():
            outputs = _tensors(model(*args, **kwargs))
    except Exception as error:
        return f"fails ({short(error, 80)})"
    finite = any(bool(t.isfinite().any()) for t in outputs if t.is_floating_point())
    return "" if finite else "is not finite"


def short(error: Exception, length: int = 200) -> str:
    """Type of an error and the beginning of its message, on one line; paths to packages are shortened."""
    text = re.sub(r"[^\s,]*site-packages/", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:length]}"


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _forward_difference(model: nn.Module, xmodel: nn.Module, args: Arguments, kwargs: Keywords) -> float:
    with torch.no_grad():
        with preserved(model), traceable(model, experts=None):
            positional, keyword = copied_inputs((args, dict(kwargs)))
            expected = _tensors(model(*positional, **keyword))
        actual = _tensors(xmodel(*args, **kwargs))
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    pairs = [
        (a.double(), b.double()) for a, b in zip(expected, actual, strict=True) if a.numel() and not a.is_complex()
    ]
    differences = [
        ((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).nan_to_num(1e9)
        if a.isfinite().all()
        else torch.tensor(float(not torch.equal(a, b)))
        for a, b in pairs
    ]
    return max([float(d) for d in differences] + [0.0])


def _explain_without_biases(
    xmodel: ExplainableModule, args: Arguments, kwargs: Keywords, target: Target
) -> Attribution:
    """Set every bias in the ledger to zero and explain again, until no bias is left (three times at most)."""
    graph_module = xmodel.current.captured.graph_module
    for module in xmodel.model.modules():
        mean, bias = getattr(module, "running_mean", None), getattr(module, "bias", None)
        if isinstance(mean, Tensor):
            mean.zero_()
            if isinstance(bias, Tensor):
                bias.detach().zero_()
    for _ in range(3):
        attribution = xmodel.explain(*args, target=target, **kwargs)
        names = {n for e in attribution.ledger.entries if e.category == "bias" for n in e.name.split("+")}
        tensors = [t for n in names if (t := _attribute(graph_module, n)) is not None and bool(t.any())]
        if not tensors:
            return attribution
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
    return xmodel.explain(*args, target=target, **kwargs)


def _attribute(root: Any, path: str) -> Tensor | None:
    for name in path.split("."):
        root = getattr(root, name, None)
    return root if isinstance(root, Tensor) else None
