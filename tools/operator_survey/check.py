"""One functional in a tiny model: check of outputs, conservation, and input x gradient against the derivative."""

from __future__ import annotations

import torch
from torch import Tensor

import lrp_fx
from operator_survey.functionals import RANDOM, Around


def weighed(output: Tensor) -> Tensor:
    """A weighted sum of an output, with a different weight for every entry."""
    values = torch.view_as_real(output) if output.is_complex() else output
    weights = torch.cos(torch.arange(values.numel()).double() * 1.37 + 0.4).view(values.shape)
    return (values * weights).sum().reshape(1)


def problems(name: str, function, x: Tensor) -> list[str]:
    """Failures of ``function`` of x, one line each.

    Raises:
        Exception: any error of conversion and explanation.
    """
    model = Around(function)
    xmodel = lrp_fx.convert(model, x)
    attribution = xmodel.explain(x, target=weighed)
    ledger, faults = attribution.ledger, []
    if abs(ledger.residual) > 1e-9 * max(1, abs(ledger.target)):
        faults.append(f"the ledger is off by {ledger.residual:.1e}")
    if not xmodel.verify(x, target=weighed).passed:
        faults.append("verify fails")
    if name not in RANDOM:
        error = _relative(xmodel(x), model(x))
        if error > 1e-12:
            faults.append(f"outputs differ by {error:.1e}")
    gradient = xmodel.explain(x, target=weighed, rules="gradient").relevance["x"]
    reference, tolerance = _reference(name, model, xmodel, x)
    error = _relative(gradient, x * reference)
    if error > tolerance:
        faults.append(f"input x gradient differs by {error:.1e}")
    return faults


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _reference(name: str, model, xmodel, x: Tensor) -> tuple[Tensor, float]:
    """The gradient and its precision: by autograd, or by central differences if autograd has none."""
    if name not in RANDOM:
        try:
            leaf = x.clone().requires_grad_()
            plain = model
            (gradient,) = torch.autograd.grad(weighed(plain(leaf)), leaf, allow_unused=True)
            return (torch.zeros_like(x) if gradient is None else gradient), 1e-9
        except RuntimeError:
            pass
    return _differences(lambda t: weighed(xmodel(t)), x), 1e-6


def _differences(function, x: Tensor, step: float = 1e-5) -> Tensor:
    slopes = []
    with torch.no_grad():
        for i in range(x.numel()):
            shift = torch.zeros(x.numel()).double()
            shift[i] = step
            ahead, behind = (float(function(x + sign * shift.view(x.shape))) for sign in (1, -1))
            slopes.append((ahead - behind) / (2 * step))
    return torch.tensor(slopes).double().view(x.shape)
