"""Check of rules="gradient": it has to equal autograd's input x gradient on the model itself.

Sums cannot tell this: a graph that differs from the model, or follows values that the model detaches, conserves, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from case import Built
from check import in_float64, judged, projection, short
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import lrp_fx
from lrp_fx.capture.conventions import traceable
from lrp_fx.errors import LrpError

GRADIENT = 1e-5  #: models that compute norms in float32 differ from their double-precision twin by that much
ROUNDING = 1e-7  #: of the explained value: rounding error of a head in float32, for maps of any size


@dataclass
class GradientRow:
    """One row.

    Attributes:
        gradient: largest difference of relevance under rules="gradient" to autograd's input x gradient.
        inputs: number of compared inputs.
        detached: number of places where the model detaches a signal.
        seen_through: number of these places that relevance passes, since otherwise no output would have a gradient.
    """

    verdict: str
    reason: str = ""
    gradient: float | None = None
    inputs: int = 0
    detached: int = 0
    seen_through: int = 0
    note: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_gradient(build: Callable[[], Built]) -> GradientRow:
    """Build a model and compare."""
    return judged(build, GradientRow, _check)


def _check(built: Built, row: GradientRow) -> None:
    model, args, kwargs, _, row.note = in_float64(built)
    xmodel = lrp_fx.convert(model, *args, **kwargs, rules="gradient")
    facts = xmodel.current.facts
    row.detached, row.seen_through = len(facts.detached), len(facts.seen_through)
    try:
        row.gradient, row.reason = against_autograd(xmodel, model, args, kwargs, built.target or projection, row)
    except Undifferentiable as error:
        row.verdict, row.reason = "not tried", str(error)
        return
    row.verdict = "fail" if row.reason else "pass"


class Undifferentiable(Exception):
    """The reason why there is no reference."""


def against_autograd(
    xmodel: Any,
    model: nn.Module,
    args: Any,
    kwargs: Any,
    target: Any,
    row: GradientRow | None = None,
    tolerance: float = GRADIENT,
) -> tuple[float, str]:
    """(largest difference, failure)."""
    attribution = xmodel.explain(*args, target=target, rules="gradient", **kwargs)
    relevance, rounding = attribution.relevance, ROUNDING * float(attribution.target.abs().max())
    try:
        wanted = input_times_gradient(model, args, kwargs, target)
    except (LrpError, Undifferentiable):
        raise
    except Exception as error:
        raise Undifferentiable(f"autograd on the model itself: {short(error, 80)}") from error
    if args:  # positional inputs, in order
        names = iter([name for name in relevance if name not in wanted])
        wanted = {(next(names, n) if n.startswith("#") else n): t for n, t in wanted.items()}
    shared = {n: t for n, t in wanted.items() if n in relevance}
    if row is not None:
        row.inputs = len(shared)
    if not shared:
        raise Undifferentiable("no input of the model is itself looked up in a table, or floating")
    difference = apart({n: relevance[n] for n in shared}, shared)
    largest = max(float((relevance[n] - shared[n]).abs().max()) for n in shared)
    if difference <= tolerance or largest <= rounding:
        return difference, ""
    worst = max(shared, key=lambda n: apart({n: relevance[n]}, {n: shared[n]}))
    return difference, f"'{worst}' is {difference:.1e} from autograd's input x gradient"


def apart(found: Mapping[Any, Tensor], wanted: Mapping[Any, Tensor]) -> float:
    """Largest difference, relative to the largest expected value; infinite where shapes or non-finite entries differ."""
    worst = 0.0
    if found.keys() != wanted.keys():
        return float("inf")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return float("inf")
        if not value.numel() or value.is_complex():
            continue
        a, b = found[name].detach().double(), value.detach().double()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return float("inf")
        if bool(finite.any()):
            worst = max(worst, float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1e-9)))
    return worst


class _Lookups(TorchFunctionMode):
    """Makes the table rows of integer inputs leaves of autograd."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named, self.rows = named, {}  # type: ignore[var-annotated]
        self.tables: set[int] = set()  #: data pointers of tables that ids of an input index
        self.others: set[int] = set()  #: of tables that other integers index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        of_parameter = func is Tensor.__getitem__ and isinstance(args[0], nn.Parameter)
        if not of_parameter and func is not nn.functional.embedding and func is not torch.embedding:
            return result
        indices = next(
            (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_floating_point()), None
        )
        names = [
            n
            for n, t in self.named.items()
            if indices is not None and t.shape == indices.shape and torch.equal(t, indices)
        ]
        table = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point())
        (self.tables if names else self.others).add(table.data_ptr())
        if not names:
            return result
        rows = result.detach().clone().requires_grad_()
        self.rows.setdefault("/".join(names), []).append((rows, indices.dim()))
        return rows


def input_times_gradient(model: nn.Module, args: Any, kwargs: Any, target: Any) -> dict[str, Tensor]:
    """Input x gradient by autograd, by input.

    For integer inputs, of their table rows, summed over features; inputs with the same integers are under one name,
    joined by "/".
    """
    leaves = {
        n: t.clone().requires_grad_() for n, t in kwargs.items() if isinstance(t, Tensor) and t.is_floating_point()
    }
    positional = [t.clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args]
    named = {n: t for n, t in kwargs.items() if isinstance(t, Tensor) and not t.is_floating_point()}
    named |= {f"#{i}": t for i, t in enumerate(args) if isinstance(t, Tensor) and not t.is_floating_point()}
    with torch.enable_grad(), traceable(model, experts=None), _Lookups(named) as lookups:
        output = model(*positional, **{**kwargs, **leaves})
        chosen = target(output)
    if lookups.tables & lookups.others:
        raise Undifferentiable("the model changes ids before it looks them up")
    found = leaves | {f"#{i}": t for i, t in enumerate(positional) if isinstance(t, Tensor) and t.requires_grad}
    picked = [(name, *looked_up) for name, many in lookups.rows.items() for looked_up in many]
    wanted = [*found.values(), *(rows for _, rows, _ in picked)]
    grads = torch.autograd.grad(chosen.sum(), wanted, allow_unused=True) if wanted else ()
    products = [(x * (torch.zeros_like(x) if g is None else g)).detach() for x, g in zip(wanted, grads, strict=True)]
    relevance = dict(zip(found, products, strict=False))
    for (name, _, depth), product in zip(picked, products[len(found) :], strict=True):
        relevance[name] = relevance.get(name, 0) + product.flatten(depth).sum(-1)
    return relevance
