"""Operands that a declaration leaves out, as they are mostly constants, have their share where a signal steers by them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx

TABLE = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

#: functions of three signals (4, 6)
STEERED = {
    "lerp": torch.lerp,
    "lerp of broadcast weights": lambda a, b, c: a.lerp(b, c[:, :1]),
    "clamp": lambda a, b, c: a.clamp(b - 1, c.abs()),
    "clamp from below": lambda a, b, c: torch.clamp_min(a, b) * c,
    "clamp from above": lambda a, b, c: torch.clamp_max(a, b) * c,
    "slopes": lambda a, b, c: F.prelu(a, b[0]) + c,
    "one slope": lambda a, b, c: F.prelu(a, b[0, :1]) + c,
    "remainder": lambda a, b, c: torch.remainder(a, b.exp()) + c,
    "fmod": lambda a, b, c: torch.fmod(a, b.exp()) + c,
    "bias of scores": lambda a, b, c: F.scaled_dot_product_attention(a[None], b[None], c[None], (a @ c.T)[None])[0],
    "scale and shift of a norm": lambda a, b, c: F.layer_norm(a, (6,), b[0], c[0]),
    "weights of a bag": lambda a, b, c: F.embedding_bag(
        torch.tensor([[0, 2], [1, 1], [3, 0], [2, 2]]), c, per_sample_weights=a[:, :2], mode="sum"
    ),
    "weights of bags of any size": lambda a, b, c: F.embedding_bag(
        torch.tensor([0, 2, 1, 3]),
        c,
        torch.tensor([0, 1, 1, 4]),
        per_sample_weights=a[:, 0],
        mode="sum",
        include_last_offset=True,
        padding_idx=1,
    ),
    "weights of a constant bag": lambda a, b, c: F.embedding_bag(
        torch.tensor([[0, 2], [1, 1], [3, 0], [2, 2]]), TABLE, per_sample_weights=a[:, :2], mode="sum"
    ),
    "kernels": lambda a, b, c: F.conv1d(a[:, None], b[:, None, :3], c[0, :4], padding=1).sum(1),
}


class Steered(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(nn.Linear(5, 6) for _ in range(3))

    def forward(self, x):
        return self.function(*(layer(x) for layer in self.layers)).tanh().sum()[None]


@pytest.mark.parametrize("name", STEERED)
def test_a_signal_that_steers_has_its_gradient(name):
    torch.manual_seed(0)
    model, x = Steered(STEERED[name]).double(), torch.randn(4, 5, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="gradient")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf), leaf)
    torch.testing.assert_close(xmodel.explain(x).relevance["x"], gradient * x, rtol=1e-9, atol=1e-12)
    assert xmodel.explain(x, rules="attnlrp").ledger.balance < 1e-9


#: a gate between two signals, spelled in three ways
GATED = (
    lambda a, b, c: torch.lerp(a, b, c.sigmoid()),
    lambda a, b, c: a + c.sigmoid() * (b - a),
    lambda a, b, c: (1 - c.sigmoid()) * a + c.sigmoid() * b,
)


@pytest.mark.parametrize("rules", ["default", "attnlrp"])
def test_a_gate_between_two_signals_is_the_same_in_every_spelling(rules):
    x, relevance = torch.randn(4, 5, dtype=torch.float64), []
    for function in GATED:
        torch.manual_seed(1)
        relevance.append(lrp_fx.convert(Steered(function).double(), x, rules=rules).explain(x).relevance["x"])
    torch.testing.assert_close(relevance[0], relevance[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(relevance[0], relevance[2], rtol=1e-9, atol=1e-12)
