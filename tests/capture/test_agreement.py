"""How much an export may differ from the model: what rounding makes is taken, a few percent are not."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.capture.agreement import disagreement


class Scaled(nn.Module):
    """Scales its output by a factor where it believes itself exported."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.cumsum(-1) * (self.factor if torch.compiler.is_exporting() else 1.0)


@pytest.mark.parametrize(("factor", "route"), [(1.005, "export"), (1.02, "trace")])
def test_an_export_is_trusted_as_far_as_the_tolerance_goes(factor, route):
    model, x = Scaled(factor), torch.randn(3, 4)
    xmodel = lrp_fx.convert(model, x)
    captured = xmodel.current.captured
    assert captured.route == route
    assert ("disagrees" in captured.refusal) is (route == "trace")
    torch.testing.assert_close(xmodel(x), model(x) * (factor if route == "export" else 1.0))


class Drawn(nn.Module):
    """Its input with a little noise, and something added."""

    def __init__(self, noise, added):
        super().__init__()
        self.noise, self.added = noise, added

    def forward(self, x):
        return x + self.noise * torch.randn_like(x) + self.added


def test_a_model_that_draws_is_no_excuse_for_any_difference():
    x = torch.linspace(-1, 1, 12)
    assert disagreement(Drawn(0.1, 0.0), Drawn(0.1, 0.05), (x,), {}) == 0
    assert disagreement(Drawn(0.1, 0.0), Drawn(0.1, 5.0), (x,), {}) > 1
