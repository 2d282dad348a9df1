"""Fused normalizations whose weight and bias are computed from an input: as if they were written out."""

from __future__ import annotations

import pytest
import torch
from models import few
from torch import Tensor, nn
from torch.nn import functional as F

import lrp_fx

D = torch.float64


class Conditional(nn.Module):
    """A normalization of x whose weight and bias are layers of a condition c."""

    def __init__(self, norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.scale, self.shift = norm, nn.Linear(5, 6, dtype=D), nn.Linear(5, 6, dtype=D)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.norm(x, self.scale(c), self.shift(c))


def _normed(x: Tensor, dims, centred: bool = True) -> Tensor:
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + 1e-5)


def _grouped(x: Tensor, groups: int) -> Tensor:
    return _normed(x.reshape(x.shape[0], groups, 6 // groups, -1), (2, 3)).reshape(x.shape)


def _batch(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(6, dtype=x.dtype), torch.full((6,), 2.0, dtype=x.dtype)


NORMS = {  # of (B, 6, T): fused, and written out
    "group": (lambda x, w, b: F.group_norm(x, 2, w, b), lambda x, w, b: _grouped(x, 2) * w[:, None] + b[:, None]),
    "instance": (
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: _grouped(x, 6) * w[:, None] + b[:, None],
    ),
    "layer": (lambda x, w, b: F.layer_norm(x.mT, (6,), w, b), lambda x, w, b: _normed(x.mT, -1) * w + b),
    "rms": (lambda x, w, b: F.rms_norm(x.mT, (6,), w, 1e-5), lambda x, w, b: _normed(x.mT, -1, False) * w),
    "batch": (
        lambda x, w, b: F.batch_norm(x, *_batch(x), w, b),
        lambda x, w, b: (x * (2 + 1e-5) ** -0.5) * w[:, None] + b[:, None],
    ),
    "batch, of these samples": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: _normed(x, (0, 2)) * w[:, None] + b[:, None],
    ),
    "instance, given statistics": (
        lambda x, w, b: F.instance_norm(x, *_batch(x), w, b, False),
        lambda x, w, b: (x * (2 + 1e-5) ** -0.5) * w[:, None] + b[:, None],
    ),
    "group, weight alone": (lambda x, w, b: F.group_norm(x, 2, w), lambda x, w, b: _grouped(x, 2) * w[:, None]),
    "group, bias alone": (
        lambda x, w, b: F.group_norm(x, 2, None, b),
        lambda x, w, b: _grouped(x, 2) + b[:, None],
    ),
    "group of an image": (
        lambda x, w, b: F.group_norm(x[..., None], 2, w, b)[..., 0],
        lambda x, w, b: _grouped(x, 2) * w[:, None] + b[:, None],
    ),
    "layer over two": (
        lambda x, w, b: F.layer_norm(x.mT, (4, 6), w.expand(4, 6), b.expand(4, 6)),
        lambda x, w, b: _normed(x.mT, (1, 2)) * w + b,
    ),
}


def _weighed(output: Tensor) -> Tensor:
    return (output * torch.cos(torch.arange(output.numel())).view(output.shape).to(output)).sum().reshape(1)


def _inputs(samples: int = 2, length: int = 4) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, length, generator=drawn, dtype=D), torch.randn(5, generator=drawn, dtype=D)


@pytest.mark.parametrize("name", few(NORMS, *list(NORMS)[::3]))
def test_fused_is_written_out(name):
    """Under every kind of rule set, also at another size, and as autograd has it."""
    x, c = _inputs()
    fused, written = (Conditional(norm) for norm in NORMS[name])
    xmodels = [lrp_fx.convert(model, x, c, rules="attnlrp") for model in (fused, written)]
    for given in ((x, c), (_inputs(3, 4 if "two" in name else 7)[0], c)):
        for rules in ("attnlrp", "cp_lrp", "gradient"):
            first, second = (m.explain(*given, target=_weighed, rules=rules) for m in xmodels)
            for of in "xc":
                wanted = second.relevance[of]
                assert wanted.abs().max() > 1e-3
                assert (first.relevance[of] - wanted).abs().max() < 1e-8 * wanted.abs().max()
            assert first.ledger.balance < 1e-10
        leaves = [t.clone().requires_grad_() for t in given]
        gradients = torch.autograd.grad(_weighed(written(*leaves)), leaves)  # (torch fails at a bias alone)
        for of, leaf, gradient in zip("xc", leaves, gradients, strict=True):
            assert torch.allclose(first.relevance[of], leaf * gradient, rtol=1e-8, atol=1e-10)
    assert xmodels[0].verify(x, c, target=_weighed).passed


def test_a_weight_that_is_computed_from_parameters_stays_in_the_kernel():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, dtype=D))

        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, (6,), 1 + self.weight, 1e-5)

    x = torch.randn(2, 6, dtype=D)
    xmodel = lrp_fx.convert(Plain(), x, rules="attnlrp")
    assert torch.equal(xmodel(x), xmodel.model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["group", "layer", "rms"])
def test_half_precision(name, dtype):
    """Map and sum agree with double precision."""
    x, c = (t.to(dtype) for t in _inputs())
    model = Conditional(NORMS[name][0]).to(dtype)
    found = lrp_fx.convert(model, x, c, rules="attnlrp").explain(x, c, target=lambda o: _weighed(o.float()))
    exact = lrp_fx.convert(model.double(), x.double(), c.double(), rules="attnlrp").explain(
        x.double(), c.double(), target=_weighed
    )
    for of in "xc":
        wanted, got = exact.relevance[of], found.relevance[of].double()
        assert (got - wanted).abs().max() < 0.03 * wanted.abs().max()
        assert abs(got.sum() - wanted.sum()) < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("name", ["group", "layer"])
def test_every_way_agrees(name):
    """Lowered, in low memory and as one of many targets."""
    x, c = _inputs()
    xmodel = lrp_fx.convert(Conditional(lambda *given: NORMS[name][0](*given).flatten(1)), x, c, rules="attnlrp")
    wanted = xmodel.explain(x, c, target=3).relevance
    ways = (
        xmodel.lower(x, c, target=3)(x, c, target=3).relevance,
        xmodel.explain(x, c, target=3, memory="low").relevance,
        {of: values[1] for of, values in xmodel.explain(x, c, targets=[0, 3]).relevance.items()},
    )
    for found in ways:
        for of in "xc":
            assert torch.allclose(found[of], wanted[of], rtol=1e-10, atol=1e-14) and wanted[of].any()


class Written(nn.Module):
    """A convolution, a normalization, and next to them a write in place."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv1d(6, 6, 3), norm, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y += 1.0
        return self.head(self.norm(self.convolution(x)).relu().mean(2)) + y.mean((1, 2))[:, None]


@pytest.mark.parametrize("rules", ["attnlrp", "gradient", "vit_gamma"])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.BatchNorm1d(6, track_running_stats=False),
        nn.InstanceNorm1d(6, affine=True, track_running_stats=True), nn.GroupNorm(2, 6),
    ],
    ids=str,
)  # fmt: skip
def test_a_recorded_run_with_a_write_in_place(norm, rules):
    """Normalizations are not taken apart: folded into layers as in an exported graph, and all is accounted for."""
    torch.manual_seed(0)
    model, (x, _) = Written(norm).double().eval(), _inputs()
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    wanted = lrp_fx.convert(model, x, rules=rules, capture="export")
    found = lrp_fx.convert(model, x, rules=rules, capture="trace")
    for xmodel in (wanted, found):
        assert torch.allclose(xmodel(x), model(x), rtol=1e-12) and xmodel.verify(x, target=1).passed
    exported, recorded = (m.explain(x, target=1) for m in (wanted, found))
    assert recorded.ledger.balance < 1e-12
    assert torch.allclose(recorded.relevance["x"], exported.relevance["x"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rules", ["attnlrp", "vit_gamma"])
def test_an_instance_norm_with_given_statistics_is_a_batch_norm_with_them(rules):
    """Both are affine, and folded into the layer in front of them."""
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(6), nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
    with torch.no_grad():
        for tensor in (*norms[0].parameters(), *norms[0].buffers()):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    norms[1].load_state_dict(norms[0].state_dict())
    layers, x = (nn.Conv1d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)), _inputs()[0]
    models = [nn.Sequential(layers[0], norm, *layers[1:]).double().eval() for norm in norms]
    wanted, found = (lrp_fx.convert(model, x, rules=rules).explain(x, target=1) for model in models)
    assert wanted.relevance["input"].abs().max() > 1e-3 and found.ledger.balance < 1e-12
    assert torch.allclose(found.relevance["input"], wanted.relevance["input"], rtol=1e-10, atol=1e-14)
