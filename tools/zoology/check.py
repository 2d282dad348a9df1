"""What one row of the zoo is checked for: same outputs, conservation from outside, conservation at every node."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from case import Built, NotBuildable
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.errors import LrpError
from lrp_fx.explain.reading import find_logits

FORWARD, CONSERVATION, FLOAT32 = 1e-5, 1e-6, 1e-3
Rules = str | Mapping[str, Any]


@dataclass
class Row:
    """One row of the report; ``reason`` says why where the verdict is not "pass".

    Attributes:
        route: how it was captured.
        forward: largest difference to the model's outputs in float32, relative to the largest output.
        conservation: |target - inputs - sources - literals| / |target| under cp_lrp in float64, biases zeroed. Sources
            are positions, class tokens and the like; literals are numbers written in the code that are added.
        literals: their part of it.
        role_defect: largest defect at one node under attnlrp.
        note: what was done otherwise than for the other rows.
        silent: inputs that could carry relevance and got none.
    """

    verdict: str
    reason: str = ""
    route: str = ""
    nodes: int = 0
    capture_seconds: float = 0.0
    forward: float | None = None
    conservation: float | None = None
    literals: float | None = None
    role_defect: float | None = None
    roles: dict[str, int] = field(default_factory=dict)
    note: str = ""
    silent: list[str] = field(default_factory=list)
    specialised: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_Row = TypeVar("_Row", bound="Judged")


class Judged(Protocol):
    """What rows of every kind have."""

    verdict: str
    reason: str
    seconds: float


def check(build: Callable[[], Built], rules: Rules = "cp_lrp", ops: Mapping[str, Any] | None = None) -> Row:
    """Build a model and check it."""
    return judged(build, Row, functools.partial(_check, rules=rules, ops=ops))


def judged(build: Callable[[], Built], kind: Callable[[str, str], _Row], run: Callable[[Built, _Row], None]) -> _Row:
    """The row of a model: it is built, and ``run`` fills the row; what goes wrong is its reason."""
    start, row = time.perf_counter(), kind("fail", "")
    try:
        built = build()
    except NotBuildable as error:
        return kind("not buildable", str(error))
    except Exception as error:
        return kind("not buildable", short(error))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(built, row)
    except LrpError as error:
        row.reason = short(error, 300)
    except Exception as error:
        row.reason = "UNNAMED " + short(error, 300)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _check(built: Built, row: Row, rules: Rules, ops: Mapping[str, Any] | None) -> None:
    model, args, kwargs = built.model, built.args, built.inputs
    xmodel = lrp_fx.convert(model, *args, **kwargs, ops=ops)
    captured = xmodel.current.captured
    row.route = captured.route
    row.nodes, row.capture_seconds = len(captured.graph_module.graph.nodes), round(captured.seconds, 1)
    row.roles = dict(Counter(d.role for d in xmodel.current.under(xmodel.ruleset).plan.decisions.values()))
    row.forward = _forward_difference(model, xmodel, args, kwargs)
    row.specialised = xmodel.report().specialised
    del xmodel

    model, args, kwargs, tolerance, row.note = in_float64(built)
    xmodel = lrp_fx.convert(model, *args, **kwargs, rules=rules, ops=ops)
    target = built.target or projection
    row.role_defect = max(
        [r.defect for r in xmodel.verify(*args, target=target, rules="attnlrp", **kwargs).roles], default=0.0
    )
    attribution = _explain_without_biases(xmodel, args, kwargs, target)
    ledger = attribution.ledger
    inputs = sum(float(r.double().sum()) for r in attribution.relevance.values())
    row.literals = ledger["constant"] / (abs(ledger.target) or 1)
    row.conservation = abs(ledger.target - inputs - ledger["source"] - ledger["constant"]) / (
        abs(ledger.target) or 1e-300
    )
    row.silent = [name for name, r in attribution.relevance.items() if not bool(r.any())]
    row.reason = _shortcomings(row, ledger.by("category"), len(attribution.relevance), tolerance)
    row.verdict = "fail" if row.reason else "pass"


def in_float64(built: Built) -> tuple[nn.Module, Any, Any, float, str]:
    """(model, arguments, keywords, tolerance, note): in float32, with a note, where the model itself fails in float64."""
    double = _double(_copied(built.model))
    args, kwargs = pytree.tree_map(_double_tensor, (built.args, built.inputs))
    if reason := fails(double, args, kwargs):
        note = f"checked in float32 to {FLOAT32}: in float64 the model itself {reason}"
        return built.model, built.args, built.inputs, FLOAT32, note
    return double, args, kwargs, CONSERVATION, ""


def _shortcomings(row: Row, categories: dict[str, float], inputs: int, tolerance: float) -> str:
    found = []
    if not row.forward <= FORWARD:
        found.append(f"outputs differ by {row.forward:.1e}")
    if not row.conservation <= tolerance:
        where = ", ".join(f"{k} {v:.2g}" for k, v in categories.items())
        found.append(f"conservation defect {row.conservation:.1e} ({where})")
    if not row.role_defect <= tolerance:
        found.append(f"a node does not conserve: {row.role_defect:.1e}")
    if len(row.silent) == inputs:
        found.append("no input receives relevance")
    return "; ".join(found)


def short(error: Exception, length: int = 200) -> str:
    """Its kind and the beginning of its message, on one line."""
    text = re.sub(r"[^\s,]*site-packages/", "", " ".join(str(error).split()))  # no paths of this machine in the report
    return f"{type(error).__name__}: {text[:length]}"


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _forward_difference(model: nn.Module, xmodel: nn.Module, args: Any, kwargs: Any) -> float:
    from lrp_fx.capture.conventions import traceable

    with torch.no_grad():
        with traceable(model, experts=None):
            expected = _tensors(model(*args, **kwargs))
        found = _tensors(xmodel(*args, **kwargs))
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel() and not a.is_complex()]
    differences = [
        ((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).nan_to_num(1e9)
        if a.isfinite().all()
        else torch.tensor(float(not torch.equal(a, b)))
        for a, b in pairs
    ]
    return max([float(d) for d in differences] + [0.0])


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception:  # some modules cannot be copied
        return model


def fails(model: nn.Module, args: Any, kwargs: Any) -> str:
    """Why a model does not run by itself, or gives no finite output; empty where it does."""
    try:
        with torch.no_grad():
            outputs = _tensors(model(*args, **kwargs))
    except Exception as error:
        return f"fails ({short(error, 80)})"
    finite = any(bool(t.isfinite().any()) for t in outputs if t.is_floating_point())
    return "" if finite else "is not finite"


def _double(model: nn.Module) -> nn.Module:
    """In float64; experts that have no float64 kernel outside of a capture are told to use the loop."""
    model = model.double()
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
    return model


def _double_tensor(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def projection(output: Any) -> Tensor:
    """A fixed random linear functional of the whole output: every position and class takes part."""
    logits = find_logits(output)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    finite = (
        logits.abs() < 1e30
    )  # entries that are masked out count for nothing; some models give float32 logits always
    return (torch.where(finite, logits, 0.0).double() * weights.double()).sum().reshape(1)


def _explain_without_biases(xmodel: Any, args: Any, kwargs: Any, target: Any) -> lrp_fx.Attribution:
    """Zero whatever the ledger calls a bias, and explain again: what is left has to be sources."""
    graph_module = xmodel.current.captured.graph_module
    for module in xmodel.model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.detach().zero_()
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
