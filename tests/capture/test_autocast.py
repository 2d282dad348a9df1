"""Regions under autocast inside a model: casts written out, other sizes, beside regions without gradients."""

import pytest
import torch
from models import few
from torch import nn

import lrp_fx


class Regions(nn.Module):
    """Attention, a norm and a layer in bfloat16, between layers in float32."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, x):
        h = torch.relu(self.first(x))
        with torch.autocast("cpu", torch.bfloat16):
            h = h + self.attention(h, h, h)[0]
            h = self.norm(h)
        return self.last(h.float()).mean(1)


class WithoutGradients(Regions):
    def forward(self, x):
        with torch.no_grad():
            scale = self.first(x).mean()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                shift = self.first(x)
            x = x * scale + self.first(x) - shift
        return super().forward(x)


class Decorated(Regions):
    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, x):
        return self.last(torch.relu(self.first(x))).mean(1)


class Nested(Regions):
    """Operators that autocast knows by their parts only, and a region that turns it off."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = torch.einsum("bij,bkj->bik", self.first(x), x)
            with torch.autocast("cpu", enabled=False):
                h = torch.relu(h.float() @ x + torch.tensor(0.5))
            h = torch.cat([h, self.first(x)], 1)
        return self.last(h.float()).mean(1)


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("kind", few([WithoutGradients, Decorated, Nested], Decorated))
def test_regions_are_the_models(kind, capture):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 5, 8)
    xmodel = lrp_fx.convert(model, x, capture=capture)
    for inputs in (x, torch.randn(3, 7, 8)):
        assert torch.equal(xmodel(inputs), model(inputs))
        leaf = inputs.clone().requires_grad_()
        model(leaf).amax(-1).float().sum().backward()
        wanted = leaf.grad * inputs
        relevance = xmodel.explain(inputs, rules="gradient").relevance["x"]
        assert (relevance - wanted).abs().max() <= 2e-3 * wanted.abs().max()  # bfloat16 itself rounds to 4e-3
        xmodel.explain(inputs)  # checks outputs and ledger
    assert torch.is_autocast_enabled("cpu") is False
    sizes = {"export": 1, "trace": 2}
    assert len(xmodel.captures) == sizes[capture]


def test_autocast_of_the_caller():
    torch.manual_seed(0)
    model, x = Decorated().eval(), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        by_export, recorded = (lrp_fx.convert(model, x, capture=c) for c in ("auto", "trace"))
        a, b = (m.explain(x).relevance["x"] for m in (by_export, recorded))
        assert torch.equal(by_export(x), model(x))
    assert (a - b).abs().max() <= 1e-2 * a.abs().max()


class Mapped(nn.Module):
    """``vmap``, which is recorded below composite operators, before a norm, whose decomposition has a named tuple."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(torch.vmap(lambda row: 2 * row)(x))).mean(1)


def test_a_norm_below_vmap():
    torch.manual_seed(0)
    model, x = Mapped().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    relevance = lrp_fx.convert(model, x).explain(x).relevance["x"]
    plain = nn.Sequential(model.norm, model.last).eval()
    wanted = lrp_fx.convert(plain, 2 * x).explain(2 * x, target=lambda y: y.mean(1).amax(-1)).relevance
    assert torch.allclose(relevance, next(iter(wanted.values())), rtol=1e-9, atol=1e-12)
