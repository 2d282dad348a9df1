"""An expression that is written twice is one tensor: the relevance is that of the spelling with a name for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx

#: functions of a model and its input -> with a name for the tensor, and with its expression written twice
TWICE = {
    "norm of a difference": (
        lambda m, x: (d := m.a(x) - m.b(x)) / d.norm(dim=-1, keepdim=True),
        lambda m, x: (m.a(x) - m.b(x)) / (m.a(x) - m.b(x)).norm(dim=-1, keepdim=True),
    ),
    "softmax": (
        lambda m, x: F.softmax(m.a(x), -1) * m.b(x),
        lambda m, x: torch.exp(m.a(x)) / torch.exp(m.a(x)).sum(-1, keepdim=True) * m.b(x),
    ),
    "nonlinearity": (lambda m, x: F.silu(m.a(x)), lambda m, x: m.a(x) * torch.sigmoid(m.a(x))),
    "norm of a slice": (
        lambda m, x: F.normalize((h := m.a(x))[..., :2], dim=-1) @ m.b.weight[:2] + h,
        lambda m, x: m.a(x)[..., :2] / m.a(x)[..., :2].norm(dim=-1, keepdim=True) @ m.b.weight[:2] + m.a(x),
    ),
}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.head, self.function = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x):
        return self.head(self.function(self, x))


def converted(function, x, **how):
    torch.manual_seed(0)
    return lrp_fx.convert(Of(function).double(), x, **how)


X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rules", ["default", "attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", TWICE)
def test_an_expression_written_twice_is_one_tensor(name, rules):
    once, twice = (converted(f, X, rules=rules).explain(X, target=1) for f in TWICE[name])
    torch.testing.assert_close(
        once.relevance["x"], twice.relevance["x"], rtol=1e-6 if rules == "default" else 1e-9, atol=1e-12
    )
    assert twice.ledger.balance < 1e-9


def test_both_calls_of_a_module_keep_their_place():
    found = converted(TWICE["nonlinearity"][1], X).explain(X, target=1, at=["a", "a@input"])
    once = converted(TWICE["nonlinearity"][0], X).explain(X, target=1, at=["a", "a@input"])
    for name, relevance in once.latents.items():
        torch.testing.assert_close(found.latents[name], relevance)


def test_calls_that_differ_stay_apart():
    """Other arguments, other types of numbers, random numbers."""

    def function(m, x):
        return torch.clamp(x, 0, 1) + torch.clamp(x, 0, 2) + x.to(torch.float32).double() + x.round(decimals=1)

    x = torch.rand(3, 4, dtype=torch.float64) * 2
    model = Of(function).double()
    torch.testing.assert_close(lrp_fx.convert(model, x)(x), model(x))

    def noisy(m, x):
        return torch.bernoulli(x / 4) - torch.bernoulli(x / 4)

    torch.manual_seed(0)
    assert bool(lrp_fx.convert(Of(noisy).double(), x, check=False)(x).std() > 0)
