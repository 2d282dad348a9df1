"""Conditional relevance and contrastive targets."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, LatentError, TargetError


class Mixer(nn.Module):
    """Two blocks over a sequence; every bit of relevance flows through ``embed``, only part of it through ``up``."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.embed(x)
        h = h + self.down(torch.nn.functional.gelu(self.up(self.norm(h))))
        return self.head(h)


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model, x = Mixer().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    return model, x, lrp_fx.convert(model, x, rules="attnlrp")


def test_an_input_with_the_name_of_an_argument_is_told_apart():
    class Conditioned(nn.Module):
        def forward(self, x, **further):
            return x * further["condition"]

    x, other = torch.randn(2, 3), torch.randn(2, 3)
    xmodel = lrp_fx.convert(Conditioned(), x, condition=other)
    attribution = xmodel.explain(x, condition=other, target=0)
    assert attribution.relevance.keys() == {"x", "condition"} and attribution.relevance["condition"].abs().sum() > 0
    for wrong in ({"at": other}, {"condition": [1, 2]}):
        with pytest.raises(InputError, match="by position"):
            xmodel.explain(x, **wrong)


def test_conditions_on_all_neurons_of_a_layer_sum_to_the_unconditional_relevance(case):
    _, x, xmodel = case
    whole = xmodel.explain(x).relevance["x"]
    parts = xmodel.explain_conditions(x, conditions=[{"embed": i} for i in range(8)])
    total = sum(p.relevance["x"] for p in parts)
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-12)
    assert max(float((p.relevance["x"] - whole).abs().max()) for p in parts) > 1e-3


def test_a_condition_is_what_flows_through_its_neurons(case):
    """By hand: the gradient of what a neuron passes on, its activation's slope and the statistic held constant."""
    model, x, xmodel = case
    none = torch.zeros(12, dtype=torch.bool)
    rest, chosen = xmodel.explain_conditions(x, conditions=[{"up": none}, {"up": [2, 7]}], target=1)
    found = (chosen.relevance["x"] - rest.relevance["x"])[:, -1]
    last = x[:, -1].clone().requires_grad_()
    h = model.embed(last)
    spread = h.var(-1, correction=0, keepdim=True).add(1e-5).sqrt().detach()
    z = model.up((h - h.mean(-1, keepdim=True)) / spread * model.norm.weight + model.norm.bias)
    slope = (torch.nn.functional.gelu(z) / z).detach()
    weights = (model.head.weight[1] @ model.down.weight)[[2, 7]]
    (z * slope)[:, [2, 7]].mv(weights).sum().backward()
    torch.testing.assert_close(found, last.detach() * last.grad, rtol=1e-9, atol=1e-12)


def test_a_single_condition_equals_the_one_of_a_list(case):
    _, x, xmodel = case
    alone = xmodel.explain(x, condition={"up": [1, 3], "embed": [0, 2, 4]})
    (listed,) = xmodel.explain_conditions(x, conditions=[{"up": torch.tensor([1, 3]), "embed": [0, 2, 4]}])
    assert torch.equal(alone.relevance["x"], listed.relevance["x"])
    with pytest.raises(LatentError, match="no ledger"):
        _ = alone.ledger
    assert xmodel.explain(x).ledger.balance < 1e-12  # the conditions have gone again


def test_channels_of_an_image_are_its_features():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 3)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    parts = xmodel.explain_conditions(x, conditions=[{"0": i} for i in range(4)])
    total = sum(p.relevance["input"] for p in parts)
    torch.testing.assert_close(total, xmodel.explain(x).relevance["input"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("condition", [{"up": 12}, {"up": []}, {"up": torch.zeros(5)}, {"nowhere": 1}])
def test_conditions_that_do_not_fit_are_named(case, condition):
    _, x, xmodel = case
    with pytest.raises(LatentError):
        xmodel.explain(x, condition=condition)


def test_a_contrast_sums_to_the_difference_of_logits(case):
    model, x, xmodel = case
    logits = model(x)[:, -1].detach()
    found = xmodel.explain(x, target=lrp_fx.Contrast(2, torch.tensor([0, 3])))
    difference = logits[:, 2] - logits[[0, 1], [0, 3]]
    torch.testing.assert_close(found.target, difference)
    assert found.ledger.balance < 1e-12
    assert abs(sum(found.ledger.values()) - float(difference.sum())) < 1e-10
    assert "target" not in found.ledger


def test_a_contrast_with_all_others_weighs_them_by_their_softmax(case):
    model, x, xmodel = case
    logits = model(x)[:, -1].detach()
    chosen = logits.argmax(-1)
    p = logits.softmax(-1)
    p = p.scatter(1, chosen[:, None], 0.0)
    expected = logits.amax(-1) - (p / p.sum(-1, keepdim=True) * logits).sum(-1)
    found = xmodel.explain(x, target=lrp_fx.Contrast())
    torch.testing.assert_close(found.target, expected)
    assert "target" not in found.ledger


def test_a_contrast_needs_classes():
    model = nn.Linear(3, 1).double()
    with pytest.raises(TargetError):
        lrp_fx.convert(nn.Sequential(model, nn.Flatten(0)), rules="attnlrp").explain(
            torch.randn(2, 3, dtype=torch.float64), target=lrp_fx.Contrast(0)
        )
