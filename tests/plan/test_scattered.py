"""Reductions over scattered entries: what each of them is depends on a word, and so does where relevance goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lrp_fx

PLACES = torch.tensor([[0, 1, 0], [2, 1, 0], [0, 3, 0]])
WEIGHTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double()


class Scattered(nn.Module):
    """Entries of b reduced into a; the last row of a is not hit by any."""

    def __init__(self, reduce, own=None) -> None:
        super().__init__()
        self.reduce, self.own = reduce, own

    def forward(self, b: Tensor, a: Tensor | None = None) -> Tensor:
        return self.reduce(self.own if a is None else a, b)


def _words(word: str, include_self: bool):
    return lambda a, b: a.scatter_reduce(0, PLACES, b, word, include_self=include_self)


REDUCTIONS = {
    f"{word}{'' if own else ', without self'}": _words(word, own)
    for word in ("sum", "mean", "amax", "amin", "prod")
    for own in (True, False)
} | {
    "index mean": lambda a, b: a.index_reduce(0, torch.tensor([0, 3, 0]), b, "mean"),
    "index prod": lambda a, b: a.index_reduce(0, torch.tensor([0, 3, 0]), b, "prod", include_self=False),
    "in place": lambda a, b: a.clone().scatter_reduce_(0, PLACES, b, "prod"),
    "recorded": lambda a, b: a.scatter_reduce(0, PLACES, b, "prod") if b.sum() < 1e9 else a,
    "segments": lambda a, b: a * torch.segment_reduce(b, "mean", lengths=torch.tensor([2, 1, 0, 0, 0])).nan_to_num(),
}


def _tensors() -> tuple[Tensor, Tensor]:
    """(b, a), a zero in each, so that products have one zero among their factors, and one has two."""
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, generator=drawn).double() for n in (5, 3))
    b[0, 1] = b[0, 2] = b[1, 2] = a[3, 1] = 0
    return b, a


def _weighed(output: Tensor) -> Tensor:
    return (output * WEIGHTS).sum().reshape(1)


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_gradient_rules_are_autograd_and_every_rule_conserves(name):
    b, a = _tensors()
    model = Scattered(REDUCTIONS[name])
    xmodel = lrp_fx.convert(model, b, a)
    gradient = xmodel.explain(b, a, target=_weighed, rules="gradient").relevance
    leaves = [t.clone().requires_grad_() for t in (b, a)]
    for leaf, of, found in zip(leaves, "ba", torch.autograd.grad(_weighed(model(*leaves)), leaves), strict=True):
        assert torch.allclose(gradient[of], leaf * found, rtol=1e-12, atol=1e-15)
    assert xmodel.explain(b, a, target=_weighed).ledger.balance < 1e-12
    assert xmodel.verify(b, a, target=_weighed).passed


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("carries", [True, False])
def test_factors_that_are_scattered_share_evenly(include_self, carries):
    """R of each of n factors is y/n; a constant self is none of them, one that nothing was scattered to stays."""
    b, a = _tensors()
    xmodel = lrp_fx.convert(Scattered(_words("prod", include_self), a), *((b, a) if carries else (b,)))
    for scale in (1.0, 2.0):  # (the same capture on other values)
        given = (b * scale, a) if carries else (b * scale,)
        found = xmodel.explain(*given, target=_weighed).relevance
        arrived = a.scatter_reduce(0, PLACES, b * scale, "prod", include_self=include_self) * WEIGHTS
        hit = torch.zeros_like(a).scatter_reduce(0, PLACES, torch.ones_like(b), "sum")
        inside = torch.ones_like(a) if include_self else (hit == 0).double()
        share = arrived / (hit + inside if carries else hit).clamp(min=1)
        assert torch.allclose(found["b"], share.gather(0, PLACES), rtol=1e-12, atol=1e-15)
        if carries:
            assert torch.allclose(found["a"], share * inside, rtol=1e-12, atol=1e-15)


def test_sums_and_means_are_linear_layers_of_a_rule_set():
    """The epsilon rule applies to them; a selection knows no epsilon."""
    b, a = _tensors()
    rules = {"linear": {"rule": "epsilon", "epsilon": 0.5}}
    for word in ("sum", "mean"):
        xmodel = lrp_fx.convert(
            Scattered(_words(word, True)), b, a, rules=lrp_fx.RuleSet.load("attnlrp").altered(rules, {}, "wide")
        )
        found, z = xmodel.explain(b, a, target=_weighed).relevance, _words(word, True)(a, b)
        count = torch.ones_like(a).scatter_reduce(0, PLACES, torch.ones_like(b), word if word == "sum" else "sum")
        slope = WEIGHTS * z / torch.where(z >= 0, z + 0.5, z - 0.5) / (count if word == "mean" else 1)
        assert torch.allclose(found["a"], a * slope, rtol=1e-12)
        assert torch.allclose(found["b"], b * slope.gather(0, PLACES), rtol=1e-12)


@pytest.mark.parametrize("word, older", [("sum", "add"), ("prod", "multiply")])
def test_the_older_spelling(word, older):
    b, a = _tensors()
    found = [
        lrp_fx.convert(Scattered(reduce), b, a).explain(b, a, target=_weighed).relevance
        for reduce in (_words(word, True), lambda a, b: a.scatter(0, PLACES, b, reduce=older))
    ]
    for of in "ba":
        assert torch.allclose(found[0][of], found[1][of], rtol=1e-12)


def test_products_by_every_way():
    """Lowered, in low memory and as one of many targets."""
    b, a = _tensors()
    xmodel = lrp_fx.convert(Scattered(lambda a, b: _words("prod", True)(a, b).reshape(1, -1)), b, a)
    wanted = xmodel.explain(b, a, target=0).relevance
    ways = (
        xmodel.lower(b, a, target=0)(b, a, target=0).relevance,
        xmodel.explain(b, a, target=0, memory="low").relevance,
        {name: values[1] for name, values in xmodel.explain(b, a, targets=[1, 0]).relevance.items()},
    )
    for found in ways:
        for of in "ba":
            assert torch.allclose(found[of], wanted[of], rtol=1e-12) and wanted[of].any()
