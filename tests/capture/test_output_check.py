"""Outputs that keep values of the captured run: a later call would get the values of the first one."""

import functools

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import CaptureError

X = torch.randn(2, 5, dtype=torch.float64)


class Pair:
    def __init__(self, value, rest=None):
        self.value, self.rest = value, rest

    def twice(self):
        return 2 * self.value


class Returns(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(5, 3).double(), kind
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        y, scale = torch.tanh(self.layer(x)), self.scale
        return {
            "a generator": lambda: (t for t in (y, 2 * y)),
            "an iterator in a dict": lambda: {"values": iter([y])},
            "a map": lambda: (y, map(torch.relu, [y])),
            "a function": lambda: lambda z: y * z,
            "a function in an object": lambda: Pair(y, lambda z: y * z),
            "a partial function": lambda: (y, functools.partial(lambda u, z: u * z, lambda: y)),
            "an object": lambda: Pair(y, [2 * y]),
            "a method": lambda: Pair(y, Pair(2 * y)),
            "a function of the model": lambda: (y, lambda z: self.layer(z) * scale),
        }[self.kind]()


@pytest.mark.parametrize(
    "kind",
    ["a generator", "an iterator in a dict", "a map", "a function", "a function in an object", "a partial function"],
)
@pytest.mark.parametrize("capture", ["auto", "trace"])
def test_what_keeps_values_of_the_run_is_refused(kind, capture):
    with pytest.raises(CaptureError, match="keeps values of this run"):
        lrp_fx.convert(Returns(kind), X, capture=capture)


@pytest.mark.parametrize("kind", ["an object", "a method", "a function of the model"])
def test_what_can_be_made_anew_is_returned(kind):
    model = Returns(kind)
    xmodel = lrp_fx.convert(model, X)
    for x in (X, X.flip(0)):
        output, wanted = xmodel(x), model(x)
        if kind == "a function of the model":
            torch.testing.assert_close(output[0], wanted[0])
        else:
            torch.testing.assert_close(output.twice(), wanted.twice())
    target = (lambda y: y[0][:, 1]) if kind == "a function of the model" else lambda y: y.value[:, 1]
    assert xmodel.explain(X, target=target).ledger.balance < 1e-12


def test_lazy_parameters_are_created_by_a_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3)).eval()
    xmodel = lrp_fx.convert(model, X.float())
    assert model[0].weight.shape == (6, 5) and not bool(model[1].running_mean.any())
    torch.testing.assert_close(xmodel(X.float()), model(X.float()))
    assert xmodel.explain(X.float(), target=1).ledger.balance < 1e-5 and len(xmodel.captures) == 1
    wrong = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(CaptureError, match="lazy parameters"):
        lrp_fx.convert(wrong, X.float())
