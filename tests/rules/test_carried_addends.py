"""What is added to a layer and carries relevance is no bias: it keeps its own share, and the ledger books it once."""

import pytest
import torch
from torch import nn

import lrp_fx

RULES = ["epsilon", "gamma", "generalised-gamma", "alpha-beta", "z-plus", "flat", "w-square"]

#: what adds h to a product of it with the weights -> the same as a sum
ADDED = {
    "addmm": (lambda w, h: torch.addmm(h, h, w), lambda w, h: h + h @ w),
    "addmm, weighed": (lambda w, h: torch.addmm(h, h, w, beta=0.5, alpha=2.0), lambda w, h: 0.5 * h + 2.0 * (h @ w)),
    "addmv": (lambda w, h: torch.addmv(h[0], w, h[0]), lambda w, h: h[0] + w @ h[0]),
    "baddbmm": (lambda w, h: torch.baddbmm(h[None], h[None], w[None]), lambda w, h: h[None] + h[None] @ w[None]),
}


class Adds(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.weight = nn.Linear(4, 4, bias=False), nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x):
        return self.function(self.weight, self.layer(x)).reshape(1, -1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ADDED)
def test_nothing_is_booked_twice(name, rule):
    x = torch.randn(3, 4, dtype=torch.float64)
    rules = {"base": "attnlrp", "rules": {"dense": rule}}
    attribution = lrp_fx.convert(Adds(ADDED[name][0]).double(), rules=rules).explain(
        x, target=1
    )  # its first check holds
    assert attribution.ledger.balance < 1e-9
    assert attribution.ledger.by("category").get("bias", 0.0) == 0


@pytest.mark.parametrize("name", ADDED)
def test_relevance_is_that_of_the_sum_under_epsilon(name):
    x = torch.randn(3, 4, dtype=torch.float64)
    one, other = (
        lrp_fx.convert(Adds(f).double(), rules="attnlrp").explain(x, target=1).relevance["x"] for f in ADDED[name]
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_normalization_behind_such_a_layer_is_not_folded_into_it():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.weight = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Parameter(torch.randn(4, 4))
            self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            h = self.layer(x)
            return self.norm(torch.addmm(h, h, self.weight)).relu()

    x = torch.randn(3, 4, dtype=torch.float64)
    for rules in ("default", "epsilon_plus", "vit_gamma"):
        attribution = lrp_fx.convert(Net().double().eval(), rules=rules).explain(x, target=1)
        assert attribution.ledger.balance < 1e-9
