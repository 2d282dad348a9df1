"""PA-LRP: rotary tables as inputs of their own."""

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx


class Rotary(nn.Module):
    """One signal turned by a table of positions, read out linearly."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)

    def forward(self, x):
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.01], dtype=x.dtype)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        q = self.up(x)
        turned = torch.cat([-q[..., 3:], q[..., :3]], -1)
        return self.down(q * cos + turned * sin).sum(1)


def test_a_rotation_is_two_products_by_hand():
    """Half of every contribution q cos w and turn(q) sin w to the signal, half to its table."""
    torch.manual_seed(0)
    model, x = Rotary().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    found = lrp_fx.convert(model, x, rules="pa_lrp").explain(x)
    q, w = model.up(x).detach(), model.down.weight.detach()[0]
    angle = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.01] * 2, dtype=x.dtype)
    turned = torch.cat([-q[..., 3:], q[..., :3]], -1)
    cos, sin = found.sources["cos"], found.sources["sin"]
    torch.testing.assert_close(cos, (q * angle.cos() * w / 2).sum(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sin, (turned * angle.sin() * w / 2).sum(0), rtol=1e-9, atol=1e-12)
    plain = lrp_fx.convert(model, x, rules="attnlrp").explain(x)
    torch.testing.assert_close(found.relevance["x"], plain.relevance["x"] / 2, rtol=1e-9, atol=1e-12)
    assert found.ledger["position"] == pytest.approx(float(found.target.sum()) / 2, rel=1e-9)
    assert "position" not in plain.ledger


@pytest.mark.parametrize("name", few(["llama2", "mixtral", "gemma3", "phi", "qwen3"], "llama2"))
def test_positions_are_accounted_for(name):
    """The ledger closes with the tables among the inputs, and every node conserves."""
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules="pa_lrp")
    found = xmodel.explain(**inputs)
    assert found.ledger.balance < 1e-9
    assert abs(found.ledger["position"]) > 1e-6
    assert xmodel.verify(**inputs).passed
    tables = [key for key in found.sources if key.endswith((" cos", " sin"))]
    assert len(tables) >= 2
    assert all(found.sources[key].shape[-2] == inputs["input_ids"].shape[1] for key in tables)


def test_an_override_counts_positions_in_some_layers_only():
    model, inputs = build("llama2")
    rules = {"base": "pa_lrp", "overrides": {"model.layers.0.*": {"position": "stop"}}}
    every, some = (lrp_fx.convert(model, **inputs, rules=r).explain(**inputs).ledger for r in ("pa_lrp", rules))
    assert some.balance < 1e-9
    assert 0 < abs(some["position"]) != abs(every["position"])


class Halved(nn.Module):
    """A signal turned by tables that are halves of one."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)

    def forward(self, x):
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1] * 3, dtype=x.dtype)
        cos, sin = torch.cat([angle.cos(), angle.sin()], -1).split(6, -1)
        q = self.up(x)
        return self.down(q * cos + q.flip(-1) * sin).sum(1)


def test_tables_may_be_split_from_one():
    torch.manual_seed(0)
    model, x = Halved().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    found = lrp_fx.convert(model, x, rules="pa_lrp").explain(x)
    plain = lrp_fx.convert(model, x, rules="attnlrp").explain(x)
    torch.testing.assert_close(found.relevance["x"], plain.relevance["x"] / 2, rtol=1e-9, atol=1e-12)
    assert found.ledger["position"] == pytest.approx(float(found.target.sum()) / 2, rel=1e-9)


@pytest.mark.parametrize("first", ["cosines", "sines"])
def test_a_projection_for_attention_is_one_in_either_order_of_its_rotation(first):
    """The role was found only if the terms of the rotation were met in one of two orders."""

    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(4, 4)
            self.register_buffer("angles", torch.arange(20.0).view(5, 4))

        def forward(self, x):
            q = self.query(x)
            half = torch.cat([-q[..., 2:], q[..., :2]], -1)
            if first == "cosines":
                q = q * self.angles.cos() + half * self.angles.sin()
            else:
                q = half * self.angles.sin() + q * self.angles.cos()
            return torch.nn.functional.scaled_dot_product_attention(q, x, x).mean(1)

    xmodel = lrp_fx.convert(Rotated(), torch.randn(2, 5, 4))
    layers = xmodel.current.under(xmodel.ruleset).plan.facts.layers.values()
    assert ["attention-projection" in layer.roles for layer in layers] == [True]
