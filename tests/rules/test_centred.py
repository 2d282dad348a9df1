"""A nonlinearity with f(0) != 0 is a constant plus a signal under the default rules, however it is spelled."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx

#: a function with f(0) != 0 -> the same one, as a constant plus a function that is 0 at 0
SPELLINGS = {
    "sigmoid": (torch.sigmoid, lambda x: 0.5 + 0.5 * torch.tanh(x / 2)),
    "exp": (torch.exp, lambda x: 1 + torch.expm1(x)),
    "cos": (torch.cos, lambda x: 1 - 2 * torch.sin(x / 2) * torch.sin(x / 2)),
    "hardsigmoid": (F.hardsigmoid, lambda x: 0.5 + F.hardtanh(x, -3, 3) / 6),
}


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["sigmoid", "exp", "cos", "hardsigmoid"])
def test_spellings_have_one_relevance(name):
    results = [lrp_fx.convert(Net(f).double()).explain(X, target=1) for f in SPELLINGS[name]]
    torch.testing.assert_close(results[0].relevance["x"], results[1].relevance["x"], rtol=1e-7, atol=1e-10)
    first, second = (r.ledger for r in results)
    assert first["constant"] == pytest.approx(second["constant"], rel=1e-7)
    assert first.balance < 1e-12


def test_the_constant_is_the_function_at_zero():
    model = Net(torch.sigmoid).double()
    attribution = lrp_fx.convert(model, rules={"base": "default", "rules": {"dense": "epsilon"}}).explain(X, target=1)
    assert attribution.ledger["constant"] == pytest.approx(
        float(0.5 * model.second.weight[1].sum() * len(X)), rel=1e-12
    )


def test_a_probability_below_one_half_speaks_against_the_class():
    """Under f(x)/x the signs of contributions were those of a probability, turned where its logit is negative."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()).double()
    nn.init.constant_(model[0].bias, 0.0)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0]]))
    relevance = lrp_fx.convert(model).explain(torch.tensor([[-3.0, 1.0]]).double(), target=0).relevance["input"][0]
    assert relevance[0] < 0 < relevance[1]


def test_an_argument_of_zero_has_the_limit():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 2)).double()
    x = torch.tensor([[0.0, 0.0, 0.0], [1e-9, -1e-9, 2e-9]], dtype=torch.float64)
    gradient, default = (
        lrp_fx.convert(model, rules={"base": "default", "rules": {"dense": "epsilon", "nonlinearity": rule}})
        .explain(x, target=0)
        .relevance["input"]
        for rule in ("gradient", "centred-identity")
    )
    torch.testing.assert_close(default, gradient, rtol=1e-6, atol=1e-20)


#: functions with f(0) != 0
OFFSET = (
    torch.sigmoid,
    F.softplus,
    torch.exp,
    torch.exp2,
    torch.cos,
    torch.cosh,
    torch.erfc,
    F.hardsigmoid,
    torch.acos,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", OFFSET, ids=lambda f: f.__name__)
def test_half_precision_has_the_map_and_the_sum_of_double(function, dtype):
    class Weighed(nn.Module):
        def forward(self, x):
            return function(x) * weight

    small = torch.tensor([0.0, 1e-5, -1e-5, 1e-3, -1e-3, 0.03, -0.03, 0.06, -0.2], dtype=torch.float64)
    x = torch.cat([torch.linspace(-0.95, 0.95, 23, dtype=torch.float64), small])[None].to(dtype)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    zero = torch.zeros((), dtype=torch.float64)
    exact = (function(x.double()) - function(zero)) * weight.double()
    xmodel = lrp_fx.convert(Weighed(), x, dynamic=False)
    relevance = xmodel.explain(x, target=lambda out: out.sum(1)).relevance["x"].double()
    unit, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    rounded = 2 * single * (1 + function(zero)) * weight.double().abs()  # f(x), in single precision at least
    linear = torch.where(x.abs() < 4e-4, 4e-4 * x.double().abs(), 0.0) * weight.double().abs()  # f'(0) x in its place
    allowed = 4 * unit * exact.abs() + rounded + linear + 4 * unit**2
    assert ((relevance - exact).abs() <= allowed).all(), torch.stack([x.double(), relevance, exact])[:, 0].T
    assert (relevance - exact).sum().abs() <= allowed.sum()
