"""A sign in a product says which side of 0 a tensor is on: it is a mask, like a comparison, and takes no relevance."""

import pytest
import torch
from torch import nn

import lrp_fx

SPELLINGS = {
    "sign": torch.sign,
    "sgn": torch.sgn,
    "comparison": lambda s: torch.where(s > 0, 1.0, -1.0).to(s),
}


class Signed(nn.Module):
    """Attention whose weights have the signs of their scores, and a signal with the sign of another one."""

    def __init__(self, sign):
        super().__init__()
        self.project, self.head, self.sign = nn.Linear(6, 18), nn.Linear(6, 3), sign

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        scores = query @ key.mT / 6**0.5
        weights = scores.abs().softmax(-1) * self.sign(scores)
        return self.head((weights @ value * self.sign(query)).mean(1))


@pytest.mark.parametrize("rules", ["default", "attnlrp", "gradient"])
def test_a_sign_is_a_comparison(rules):
    torch.manual_seed(0)
    model, x = Signed(torch.sign).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    maps = {}
    for name, model.sign in SPELLINGS.items():
        attribution = lrp_fx.convert(model, x).explain(x, target=1, rules=rules, check="always")
        assert attribution.ledger.balance < 1e-9
        maps[name] = attribution.relevance["x"]
    for relevance in maps.values():
        torch.testing.assert_close(relevance, maps["comparison"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rules", ["default", "attnlrp"])
def test_signs_in_half_precision(rules):
    """1/|x| near 0 made maps in bfloat16 differ from those in float64."""
    torch.manual_seed(0)
    half = Signed(torch.sign).bfloat16()
    half.project.weight.data[:6] *= 0.05  # scores near 0
    x = torch.randn(4, 12, 6).bfloat16()
    rounded = lrp_fx.convert(half, x).explain(x, target=1, rules=rules).relevance["x"].double()
    model, x = half.double(), x.double()
    exact = lrp_fx.convert(model, x).explain(x, target=1, rules=rules).relevance["x"]
    assert (rounded - exact).sum().abs() < 0.02 * exact.abs().sum()
    assert torch.corrcoef(torch.stack([rounded.flatten(), exact.flatten()]))[0, 1] > 0.99


def test_a_sign_alone_passes_relevance_on():
    torch.manual_seed(0)
    layers = (nn.Linear(5, 6), nn.Linear(6, 3))
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 5, dtype=torch.float64)
    model[0].register_forward_hook(lambda module, inputs, output: output.sign())
    attribution = lrp_fx.convert(model, x).explain(x, target=1, rules="attnlrp", check="always")
    assert attribution.ledger.balance < 1e-12 and bool(attribution.relevance["input"].all())
