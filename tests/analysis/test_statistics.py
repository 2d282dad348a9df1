"""A norm that divides a product of its factor is a statistic: (q k) / |q| is (q / |q|) k."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx


def normed(x):
    return x / x.norm(dim=-1, keepdim=True)


#: functions of three signals (2, 5, 4) -> normalized first, and last
SPELLINGS = {
    "cosines of queries and keys": (
        lambda q, k, v: (normed(q) @ normed(k).mT) @ v,
        lambda q, k, v: (q @ k.mT / (q.norm(dim=-1)[..., None] * k.norm(dim=-1)[:, None])) @ v,
        lambda q, k, v: (torch.einsum("bqd,bkd->bqk", q, k) / q.norm(dim=-1)[..., None] / k.norm(dim=-1)[:, None]) @ v,
    ),
    "cosines with prototypes": (
        lambda q, k, v: normed(q) @ normed(ROWS).mT + v,
        lambda q, k, v: q @ normed(ROWS).mT / q.norm(dim=-1, keepdim=True) + v,
        lambda q, k, v: F.linear(q, ROWS) / (q.pow(2).sum(-1, keepdim=True).sqrt() * ROWS.norm(dim=-1)) + v,
    ),
    "cosines above a bound": (
        lambda q, k, v: q / q.norm(dim=-1, keepdim=True).clamp(min=1e-8) @ k.mT @ v,
        lambda q, k, v: q @ k.mT / q.norm(dim=-1, keepdim=True).clamp(min=1e-8) @ v,
        lambda q, k, v: q @ k.mT / ((q * q).sum(-1, keepdim=True).sqrt() + 0.0).clamp_min(1e-8) @ v,
    ),
    "a modulated norm": (
        lambda q, k, v: (d := q - q.mean(-1, keepdim=True)) / (d.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * (1 + k) + v,
        lambda q, k, v: (d := q - q.mean(-1, keepdim=True)) * (1 + k) / torch.sqrt((d * d).mean(-1, keepdim=True) + 0.1) + v,
    ),
}  # fmt: skip
ROWS = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layers, self.head, self.function = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
            nn.Linear(4, 2),
            function,
        )

    def forward(self, x):
        return self.head(self.function(*(layer(x) for layer in self.layers))).mean(1)


def explained(function, rules):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    found = lrp_fx.convert(Model(function).double(), x, rules=rules).explain(x, target=1)
    assert found.ledger.balance < 1e-9
    return found.relevance["x"]


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp", "gradient"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_norm_may_divide_the_factor_or_the_product(name, rules):
    first, *others = (explained(function, rules) for function in SPELLINGS[name])
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: (q @ k.mT) * q.mean(-1, keepdim=True) @ v,  # a mean weighs: it is a signal
        lambda q, k, v: (q @ k.mT) / v.norm(dim=-1, keepdim=True),  # the norm of another tensor
    ],
)
def test_other_factors_of_a_product_keep_their_share(function):
    torch.manual_seed(0)
    rows = lrp_fx.convert(Model(lambda *s: function(*s)[..., :4]).double(), torch.randn(2, 5, 4).double()).report().rows
    assert "normalization" not in [row.role for row in rows]
