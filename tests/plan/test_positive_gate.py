"""Gates without sign have a role of their own: a rule set can hold sigmoids constant and share with SiLUs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx

RULES = {"base": "attnlrp", "rules": {"positive-gate": "signal-takes-all"}}
#: gates without sign in several spellings, and gates that have one
POSITIVE = {
    "sigmoid": lambda a, b: torch.sigmoid(a) * b,
    "written out": lambda a, b: b / (1 + torch.exp(-a)),
    "by einsum": lambda a, b: torch.einsum("bi,bi->bi", torch.sigmoid(a), b),
    "softplus": lambda a, b: b * F.softplus(a),
    "in a chain": lambda a, b: 2 * (torch.sigmoid(a) * b) * torch.sigmoid(b),
}
SIGNED = {
    "silu": lambda a, b: F.silu(a) * b,
    "written out": lambda a, b: a * torch.sigmoid(a) * b,
    "product": torch.mul,
}


class Gated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.gate, self.value, self.function = nn.Linear(3, 4), nn.Linear(5, 4), function

    def forward(self, a, b):
        return self.function(self.gate(a), self.value(b))


def explained(function, rules):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    attribution = lrp_fx.convert(Gated(function).double(), a, b).explain(a, b, target=1, rules=rules)
    assert attribution.ledger.balance < 1e-12
    return attribution.relevance


@pytest.mark.parametrize("function", POSITIVE.values(), ids=POSITIVE)
def test_a_gate_without_sign_has_a_rule_of_its_own(function):
    assert explained(function, RULES)["a"].abs().max() == 0
    assert explained(function, "attnlrp")["a"].abs().max() > 0.01


@pytest.mark.parametrize("function", SIGNED.values(), ids=SIGNED)
def test_other_gates_keep_theirs(function):
    new, old = explained(function, RULES), explained(function, "attnlrp")
    assert torch.equal(new["a"], old["a"]) and new["a"].abs().max() > 0.01


@pytest.mark.parametrize("rules", [RULES, "attnlrp", "cp_lrp"], ids=str)
@pytest.mark.parametrize("name", ["written out", "by einsum"])
def test_a_gate_in_any_spelling_has_one_relevance(name, rules):
    one, other = (explained(POSITIVE[spelling], rules) for spelling in ("sigmoid", name))
    for input in "ab":
        torch.testing.assert_close(one[input], other[input], rtol=1e-10, atol=1e-12)


class Scans(nn.Module):
    """h' = exp(-d) h + d b, beside a gate that makes no decay; the step size d and the gate are functions of a."""

    def __init__(self, step):
        super().__init__()
        self.sizes, self.gates, self.step = nn.Linear(3, 4), nn.Linear(3, 4), step

    def forward(self, a, b, c):
        h, size = 0 * b[:, 0], self.step(self.sizes(a))
        for t in range(b.shape[1]):
            h = torch.exp(-size[:, t]) * h + size[:, t] * b[:, t]
        return h + torch.sigmoid(self.gates(c)) * b[:, 0]


STEPS = {
    "softplus": F.softplus,
    "clamped": lambda z: F.softplus(z).clamp(1e-3, 10.0),
    "moved": lambda z: F.softplus(z)[..., None].squeeze(-1),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_size_has_a_rule_of_its_own(step):
    torch.manual_seed(0)
    a, b, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5, 3), (2, 5, 4), (2, 3)))
    xmodel = lrp_fx.convert(Scans(step).double(), a, b, c)
    for share in (False, True):
        rules = {**RULES, "rules": {**RULES["rules"], **({"step-size": "uniform"} if share else {})}}
        attribution = xmodel.explain(a, b, c, target=1, rules=rules)
        assert attribution.ledger.balance < 1e-12
        assert bool(attribution.relevance["a"].abs().sum() > 0.01) == share
        assert attribution.relevance["c"].abs().sum() == 0


def test_the_default_shares_with_step_sizes_alone():
    default = lrp_fx.RuleSet.load("default")
    assert default.rules["step-size"].name == "uniform" and default.rules["positive-gate"].name == "signal-takes-all"
