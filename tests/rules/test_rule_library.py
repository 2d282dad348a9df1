"""Rule sets against their papers on whole blocks: what is held constant there, spelled out by hand."""

import pytest
import torch
from models import build, few
from torch import nn
from torch.nn import functional as F

import lrp_fx


class Block(nn.Module):
    """Pre-norm attention and a gated linear unit, spelled out, without biases."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(6, 8, bias=False),
            nn.Linear(6, 8, bias=False),
            nn.Linear(8, 6, bias=False),
        )

    def forward(self, x, constant=lambda t: t, half=lambda t: t, slope=None):
        """``constant``: statistics and attention weights, ``half``: products of two signals, ``slope``: of the gate."""
        h = x * constant(torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(-2, -1) / 6**0.5, -1)
        x = x + self.o(constant(weights) @ self.v(h))
        h = x * constant(torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        gate, up = self.gate(h), self.up(h)
        activated = F.silu(gate) if slope is None else slope(gate)
        return (x + self.down(half(activated * up))).sum((1, 2))


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g / 2


def identity(x):
    """SiLU as x times a constant: relevance passes through."""
    return x * torch.sigmoid(x).detach()


@pytest.mark.parametrize(
    ("rules", "half", "slope"),
    [
        ("relp", Half.apply, identity),  # half rule, identity rule, AH-rule, LN-rule: arXiv:2508.21258, table 1
        ("cp_lrp", lambda t: t, lambda g: F.silu(g).detach()),  # the gate a constant as well
    ],
)
def test_attention_and_gates_by_hand(rules, half, slope):
    torch.manual_seed(0)
    model, x = Block().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    found = lrp_fx.convert(model, x, rules=rules).explain(x)
    leaf = x.clone().requires_grad_()
    model(leaf, constant=torch.detach, half=half, slope=slope).sum().backward()
    torch.testing.assert_close(found.relevance["x"], leaf.detach() * leaf.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.relevance["x"].sum((1, 2)), model(x).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("foil", [3, None])
def test_a_contrast_of_logits_sums_to_their_difference(foil):
    """Logits that are all negative have no useful sign of their own; their difference has."""
    model, inputs = build("gpt2")
    xmodel = lrp_fx.convert(model, **inputs)
    logits = model(**inputs).logits[:, -1].detach()
    found = xmodel.explain(**inputs, target=lrp_fx.Contrast(7, foil))
    if foil is not None:
        torch.testing.assert_close(found.target, logits[:, 7] - logits[:, foil], rtol=1e-12, atol=1e-12)
    assert found.ledger.balance < 1e-12
    assert sum(found.ledger.values()) == pytest.approx(float(found.target.sum()), rel=1e-9)
    plain = xmodel.explain(**inputs, target=7)
    assert not torch.allclose(found.relevance["input_ids"], plain.relevance["input_ids"])


def test_the_composite_for_vision_transformers_tells_layers_apart():
    """Gamma where patches are embedded (0.25) and in feed-forward layers (0.05), epsilon where attention projects."""
    model, inputs = build("vit")
    rows = lrp_fx.convert(model, **inputs, rules="vit_gamma").report().rows
    rules = {row.modules[0].rpartition(".")[2]: row.rule for row in rows if row.op in ("aten.linear", "aten.conv2d")}
    by_module = {path: row.rule for row in rows for path in row.modules if row.op in ("aten.linear", "aten.conv2d")}
    assert rules
    assert {r.split("(")[0] for p, r in by_module.items() if "attention" in p} == {"epsilon"}
    assert {r for p, r in by_module.items() if "mlp" in p or "intermediate" in p or "fc1" in p} == {
        "generalised-gamma(gamma=0.05, epsilon=1e-06)"
    }
    assert {r for p, r in by_module.items() if "patch" in p} == {"generalised-gamma(gamma=0.25, epsilon=1e-06)"}


@pytest.mark.parametrize("name", lrp_fx.rules.ruleset.available())
@pytest.mark.parametrize("model", few(["llama2", "vit", "resnet", "flan-t5"], "resnet"))
def test_every_rule_set_closes_its_ledger(name, model):
    net, inputs = build(model)
    found = lrp_fx.convert(net, **inputs, rules=name).explain(**inputs)
    assert found.ledger.balance < 1e-9
    assert all(bool(r.isfinite().all()) for r in found.relevance.values())


def test_parameters_of_a_registered_rule_are_those_of_its_function():
    lrp_fx.register_rule("damped, checked", base="epsilon", backward=lambda g, y, strength: g * (1 - strength))
    for parameters, message in (({"strength": 1, "x": 2}, "'x'"), ({}, "strength"), ({"strength": "much"}, "numbers")):
        with pytest.raises(lrp_fx.errors.RuleSetError, match=message):
            lrp_fx.RuleSet.load({"base": "attnlrp", "rules": {"linear": {"rule": "damped, checked", **parameters}}})
