"""The rule set of ``convert(model)``: which rule each kind of layer gets, and that a planted cause shows."""

import pytest
import torch
from torch import nn

import lrp_fx


class Mixed(nn.Module):
    """A convolution over patches, or over a signal, then another, attention, a dense layer and a recurrence."""

    def __init__(self, patches: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 4) if patches else nn.Conv2d(1, 8, 3, 4, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dense, self.steps, self.head = nn.Linear(8, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        h = self.second(self.stem(x).relu()).relu().flatten(2).mT
        h = self.mix(h, h, h, need_weights=False)[0]
        return self.head(self.steps(self.dense(h).relu())[0][:, -1])


@pytest.mark.parametrize("patches", [True, False])
def test_structure_decides_the_rule(patches):
    x = torch.randn(2, 1, 12, 12)
    xmodel = lrp_fx.convert(Mixed(patches).eval(), x)
    assert xmodel.ruleset.name == "default" and xmodel.explain(x).ruleset == "default"
    plan = xmodel.current.under(xmodel.ruleset).plan
    rules = {plan.facts.layers[n].roles[0]: str(d.rule) for n, d in plan.decisions.items() if n in plan.facts.layers}
    stem = "patch-embedding" if patches else "first-convolution"
    assert rules == {
        stem: "epsilon" if patches else "generalised-gamma(gamma=0.25, epsilon=1e-06)",
        "convolution": "generalised-gamma(gamma=1, epsilon=1e-06)",
        "attention-projection": "epsilon",
        "dense": "generalised-gamma(gamma=0.05, epsilon=1e-06)",
    }
    sums = {str(d.rule) for n, d in plan.decisions.items() if n.target is torch.ops.aten.add.Tensor}
    assert "generalised-gamma(gamma=0.25, epsilon=1e-06)" in sums  # W x + U h of the GRU


def test_less_cancels_in_convolutions_than_under_epsilon():
    torch.manual_seed(0)
    layers = [m for c in (1, 8, 8, 8) for m in (nn.Conv2d(c, 8, 3, padding=1, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 144, 3, bias=False)).double()
    xmodel, x = lrp_fx.convert(model), torch.randn(4, 1, 12, 12, dtype=torch.float64)

    def cancelling(rules):
        attribution = xmodel.explain(x, rules=rules)
        assert abs(attribution.ledger.balance) < 1e-9
        return attribution.relevance["input"].flatten(1).abs().sum(1) / attribution.target.abs()

    assert (cancelling("default") < 0.5 * cancelling("attnlrp")).all()


def test_the_paper_s_rules_are_where_they_were():
    rules, own = lrp_fx.RuleSet.load("attnlrp").rules, ("linear", "nonlinearity")
    assert (
        rules["nonlinearity"].name == "identity"
        and rules["linear"].name == "epsilon"
        and "dense" not in rules
        and "convolution" not in rules
    )
    assert {r: v.name for r, v in lrp_fx.RuleSet.load("default").rules.items() if r in rules and r not in own} == {
        r: v.name for r, v in rules.items() if r not in own
    }
