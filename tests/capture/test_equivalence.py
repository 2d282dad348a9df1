"""One capture for two ways through a model that come to the same, and never for two that do not."""

import pytest
import torch
from torch import nn

import lrp_fx

D = torch.float64


class TwoWays(nn.Module):
    """One way for one sample, another one for more."""

    def __init__(self, one, more):
        super().__init__()
        self.one, self.more = one, more
        self.a, self.b = nn.Linear(4, 4, dtype=D), nn.Linear(4, 4, dtype=D)
        self.b.load_state_dict(self.a.state_dict())
        self.register_buffer("scale", torch.linspace(0.5, 2, 4, dtype=D)[None])

    def forward(self, x):
        h = torch.tanh(self.a(x)).mean(1)
        return (self.one if x.shape[0] == 1 else self.more)(self, h)


ONE_FUNCTION = {
    "expanded": (lambda m, h: h * m.scale, lambda m, h: h * m.scale.expand(h.shape[0], -1)),
    "sliced": (lambda m, h: h * m.scale, lambda m, h: h * m.scale[:, 0 : h.shape[1]]),
    "a size": (lambda m, h: h.repeat(1, 2), lambda m, h: h.repeat(1, 2 * h.shape[0])[:, : h.shape[1] * 2]),
    "a parameter": (lambda m, h: m.b(h), lambda m, h: m.b(h)),
    "a constant": (lambda m, h: h * torch.tensor([0.5, 1, 2, 3]), lambda m, h: h * torch.tensor([0.5, 1, 2, 3])),
}
OTHER_FUNCTIONS = {
    "a number": (lambda m, h: h * 2, lambda m, h: h * 3),
    "the kind of a number": (lambda m, h: h**2, lambda m, h: h**2.0),
    "an axis": (lambda m, h: h.flip(1), lambda m, h: h.flip(0)),
    "the order": (lambda m, h: h - m.a(h), lambda m, h: m.a(h) - h),
    "a parameter of the same values": (lambda m, h: m.a(h), lambda m, h: m.b(h)),
    "a constant": (lambda m, h: h * torch.tensor([0.5, 1, 2, 3]), lambda m, h: h * torch.tensor([0.5, 1, 2, 4])),
    "a size": (lambda m, h: h * (h.shape[0] + 1), lambda m, h: h * h.shape[0]),
    "what is expanded": (lambda m, h: h * m.scale, lambda m, h: h * m.scale.expand(h.shape[0], -1).flip(1)),
    "one more operator": (lambda m, h: h, lambda m, h: h.sin()),
    "the order of outputs": (lambda m, h: (h * 2, h.exp()), lambda m, h: (h.exp(), h * 2)),
}


def captures(xmodel):
    return int(xmodel.extra_repr().split("captures=")[1].split(",")[0])


def agrees(xmodel, model, x):
    """Outputs are the model's, relevance is a fresh conversion's."""
    torch.testing.assert_close(xmodel(x), model(x), rtol=1e-9, atol=1e-9)
    fresh = lrp_fx.convert(model).explain(x, target=1)
    torch.testing.assert_close(xmodel.explain(x, target=1).relevance["x"], fresh.relevance["x"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first, then", [(1, 3), (3, 1)])
@pytest.mark.parametrize("ways", ONE_FUNCTION.values(), ids=ONE_FUNCTION)
def test_two_ways_that_come_to_the_same_are_one_capture(ways, first, then):
    model, x = TwoWays(*ways), torch.randn(3, 5, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x[:first])
    xmodel(x[:then])
    assert captures(xmodel) == 1
    for n in (1, 2):
        agrees(xmodel, model, x[:n])
    assert captures(xmodel) == 1


@pytest.mark.parametrize("first, then", [(1, 3), (3, 1)])
@pytest.mark.parametrize("ways", OTHER_FUNCTIONS.values(), ids=OTHER_FUNCTIONS)
def test_two_ways_that_differ_are_two_captures(ways, first, then):
    model, x = TwoWays(*ways), torch.randn(3, 5, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x[:first])
    xmodel(x[:then])
    assert captures(xmodel) == 2
    with torch.no_grad():
        model.b.weight.mul_(-2)  # parameters of one value are followed apart
    for n in (1, 2, 3):
        torch.testing.assert_close(xmodel(x[:n]), model(x[:n]), rtol=1e-9, atol=1e-9)
    assert captures(xmodel) == 2


def test_what_was_compiled_for_one_sample_is_kept():
    model, x = TwoWays(*ONE_FUNCTION["expanded"]), torch.randn(3, 5, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x[:1])
    xmodel.current.use(xmodel.lower(x[:1], target=1), ())
    agrees(xmodel, model, x)
    xmodel(x[:1])
    assert xmodel.current.compiled


@pytest.mark.parametrize("saved", [False, True])
def test_what_was_lowered_at_several_samples_serves_one(saved, tmp_path):
    model, x = TwoWays(*ONE_FUNCTION["expanded"]), torch.randn(3, 5, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x)
    lowered = xmodel.lower(x, target=1)
    if saved:
        lowered.save(tmp_path / "graph.pt2")
        lowered = lrp_fx.load(tmp_path / "graph.pt2")
    for n in (1, 2):
        found, expected = lowered(x[:n], target=1), lrp_fx.convert(model).explain(x[:n], target=1)
        torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], rtol=1e-9, atol=1e-9)
    assert captures(xmodel) == 1


@pytest.mark.parametrize("saved", [False, True])
def test_what_was_lowered_refuses_one_sample_that_takes_another_way(saved, tmp_path):
    model, x = TwoWays(*OTHER_FUNCTIONS["a number"]), torch.randn(3, 5, 4, dtype=D)
    lowered = lrp_fx.convert(model, x).lower(x, target=1)
    if saved:
        lowered.save(tmp_path / "graph.pt2")
        lowered = lrp_fx.load(tmp_path / "graph.pt2")
    for _ in range(2):
        with pytest.raises(lrp_fx.errors.InputError, match=r"x\.shape\[0\] != 1"):
            lowered(x[:1], target=1)
