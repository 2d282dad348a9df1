"""The forward of an ``autograd.Function`` runs without gradients, but not because the author held it constant."""

import pytest
import torch
from torch import nn
from torch.autograd import Function

import lrp_fx


class Cubed(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x * x


class CubedInPlace(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone().mul_(x).mul_(x)


class CubedWithoutGradients(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            square = x * x
        return square * x


class CubedWithGradients(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.enable_grad():  # as a function that recomputes does
            square = x * x
        return square * x


def behind(function):
    """What is held constant in front of a function, inside of a region, and behind it."""

    def apply(x):
        with torch.no_grad():
            constant = function.apply(x).exp()
        return x.sin() + function.apply(x) * constant + x.detach() * x

    return apply


FUNCTIONS = [Cubed, CubedInPlace, CubedWithoutGradients, CubedWithGradients]


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function
        self.double()

    def forward(self, x):
        inner = self.inner(x)
        return self.outer(inner + self.function(inner)) + inner.sum(-1, keepdim=True).tanh()


@pytest.mark.parametrize("route", ["export", "trace"])
@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_its_operators_are_differentiated(function, region, route):
    model = Net(behind(function) if region else function.apply)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = lrp_fx.convert(model, x.detach(), capture=route, rules="gradient").explain(x.detach(), target=1)
    torch.testing.assert_close(found.relevance["x"], (x * gradient).detach(), rtol=1e-10, atol=1e-12)
    assert torch.is_grad_enabled()
