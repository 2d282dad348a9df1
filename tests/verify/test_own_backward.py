"""Functions with a backward of their own: rules see operators, and the gradient rules say where the model's differs."""

import pytest
import torch
from torch import nn

import lrp_fx


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.strength * g, None


class Sparing(torch.autograd.Function):
    """SiLU that keeps its input alone: its backward is its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * s * (1 + x * (1 - s))


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x):
        return self.outer(self.function(3 * self.inner(x)))


OWN = {"straight-through": StraightThrough.apply, "reversed": lambda x: Reversed.apply(x, 0.5)}
X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def noted(attribution):
    return "own backward" in [note.name for note in attribution.notes]


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("name", OWN)
def test_the_gradient_rules_say_that_the_model_has_another_gradient(name, capture):
    xmodel = lrp_fx.convert(Around(OWN[name]).double(), X, rules="gradient", capture=capture)
    for _ in range(2):
        assert noted(xmodel.explain(X, target=1))
    assert noted(xmodel.explain(X, targets=[0, 1]))
    assert not noted(xmodel.explain(X, target=1, rules="attnlrp"))


@pytest.mark.parametrize("name", OWN)
def test_other_rules_follow_the_operators(name):
    """Relevance of a rounded value is that of what was rounded; a reversed gradient reverses nothing that is computed."""
    found = lrp_fx.convert(Around(OWN[name]).double(), X, rules="attnlrp").explain(X, target=1)
    operators = {"straight-through": torch.round, "reversed": nn.Identity()}[name]
    expected = lrp_fx.convert(Around(operators).double(), X, rules="attnlrp").explain(X, target=1)
    assert found.ledger.balance < 1e-12 and float(found.relevance["x"].abs().sum()) > 0.01
    torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [Sparing.apply, nn.functional.silu, torch.round])
def test_a_backward_that_is_the_derivative_is_no_news(function):
    assert not noted(lrp_fx.convert(Around(function).double(), X, rules="gradient").explain(X, target=1))
    single = lrp_fx.convert(Around(function), X.float(), rules="gradient")
    assert not noted(single.explain(X.float(), target=1))
