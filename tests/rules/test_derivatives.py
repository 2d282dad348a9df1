"""Backwards that PyTorch has wrong: for some strides (one sample, channels last, reshaped), and under vmap."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrp_fx
from lrp_fx.rules.derivatives import differentiable

D = torch.float64
aten = torch.ops.aten


def _normed(x: Tensor, groups: int, dims: list[int] | None, stats: Any, w: Tensor, b: Tensor) -> Tensor:
    """Written out: statistics of (B, groups, C / groups, ...) along ``dims``, or given ones."""
    along = [1, -1] + [1] * (x.dim() - 2)
    if dims is None:
        mean, var = (t.view(along) for t in stats)
    else:
        split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
        mean, var = (f(dims, keepdim=True).expand_as(split).reshape(x.shape) for f in (split.mean, _var(split)))
    return (x - mean) * torch.rsqrt(var + 1e-5) * w.view(along) + b.view(along)


def _var(x: Tensor) -> Any:
    return lambda dims, keepdim: x.var(dims, correction=0, keepdim=keepdim)


def _ways(op: Any, x: Tensor, w: Tensor, b: Tensor, stats: tuple[Tensor, Tensor]) -> Any:
    """(arguments of an operator, the same written out) for every way in which it normalizes."""
    spatial = list(range(3, x.dim() + 1))
    if op is aten.group_norm.default:
        yield (x, 2, w, b, 1e-5, False), _normed(x, 2, [2, *spatial], None, w, b)
        return
    dims = [0, 2, *spatial] if op is aten.batch_norm.default else spatial
    yield (x, w, b, None, None, True, 0.1, 1e-5, False), _normed(x, 4, dims, None, w, b)
    yield (x, w, b, *stats, False, 0.1, 1e-5, False), _normed(x, 4, None, stats, w, b)


OPERATORS = (aten.batch_norm.default, aten.instance_norm.default, aten.group_norm.default)


def _strides(shape: tuple[int, ...]):
    """Strides of tensors without gaps: contiguous and channels-last, those of sizes of one being any."""
    ones = [i for i, size in enumerate(shape) if size == 1]
    for order in (range(len(shape)), (0, *range(2, len(shape)), 1)):
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis], step = step, step * shape[axis]
        for other in itertools.product((None, 1, 64), repeat=len(ones)):
            yield [next(o for i, o in zip(ones, other, strict=True) if i == axis) if axis in ones and
                   other[ones.index(axis)] is not None else stride for axis, stride in enumerate(strides)]  # fmt: skip


def _laid_out(x: Tensor, strides: list[int]) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


@pytest.mark.parametrize("op", OPERATORS, ids=str)
@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 4, 1, 5), (2, 4, 5), (1, 4, 2, 3, 2)])
def test_of_all_strides(op, shape):
    """Values are the kernel's, bit by bit; gradients of x, weight and bias are those of what is written out."""
    torch.manual_seed(0)
    x, g = torch.randn(shape, dtype=D), torch.randn(shape, dtype=D)
    w, b, *stats = (torch.rand(4, dtype=D) + 0.5 for _ in range(4))
    for of_x, of_g in itertools.product(_strides(shape), repeat=2):
        leaves = [t.requires_grad_() for t in (_laid_out(x, of_x), w.clone(), b.clone())]
        for given, written in _ways(op, *leaves, stats):
            wanted = torch.autograd.grad(written, leaves, g)
            y, plain = differentiable(op)(*given), op(*given)
            assert torch.equal(y, plain)
            found = torch.autograd.grad(y, leaves, _laid_out(g, of_g), retain_graph=True)
            alone = [torch.autograd.grad(y, leaf, _laid_out(g, of_g), retain_graph=True)[0] for leaf in leaves]
            for exact, of_all, of_one in zip(wanted, found, alone, strict=True):
                torch.testing.assert_close(of_all, exact, rtol=1e-9, atol=1e-11)
                assert torch.equal(of_all, of_one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    x, g, w, b = (torch.randn(s, dtype=dtype) for s in ((2, 4, 6), (2, 4, 6), (4,), (4,)))
    for own in (True, False):
        stats = [torch.full((4,), value, dtype=dtype) for value in (0.5, 2.0)]

        def gradient(*given: Tensor, own: bool = own) -> Tensor:
            x, g, w, b, *stats = given
            x = x.clone().requires_grad_()
            y = differentiable(aten.batch_norm.default)(x, w, b, *stats, own, 0.1, 1e-5, False)
            return torch.autograd.grad(y, x, g)[0]

        found, exact = gradient(x, g, w, b, *stats), gradient(*(t.double() for t in (x, g, w, b, *stats)))
        assert found.dtype is dtype
        assert (found.double() - exact).abs().max() < 0.02 * exact.abs().max()


class Stem(nn.Module):
    """A convolution, batch normalization, and its places as a sequence: as hybrids of both kinds of network begin."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.first = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.convolution(x)).flatten(2).transpose(1, 2)
        return self.head(self.second(x).square().mean(1))


class Style(nn.Module):
    """Two normalizations with another memory format between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).contiguous(memory_format=torch.channels_last))
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Stem, Style])
@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp", "gradient"])
@pytest.mark.parametrize("captured", [1, 3])
def test_one_sample_is_one_of_three(kind, rules, captured):
    """By every route; and with ``rules="gradient"`` what differences of outputs say."""
    torch.manual_seed(0)
    model = kind().double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.3)
    x = torch.randn(3, 4, 3, 5, dtype=D)
    xmodel = lrp_fx.convert(model, x[:captured], rules=rules)
    one, many = x[:1], xmodel.explain(x, target=1).relevance["x"]
    assert many.abs().sum() > 1e-3
    assert torch.equal(xmodel(one), model(one)) and xmodel.verify(one, target=1).passed
    ways = {
        "eager": xmodel.explain(one, target=1).relevance["x"],
        "lowered": xmodel.lower(one, target=1)(one, target=1).relevance["x"],
        "low memory": xmodel.explain(one, target=1, memory="low").relevance["x"],
        "many targets": xmodel.explain(one, targets=[0, 1]).relevance["x"][1],
        "channels last": xmodel.explain(one.to(memory_format=torch.channels_last), target=1).relevance["x"],
    }
    for way, found in ways.items():
        assert (found - many[:1]).abs().max() < 1e-10 * many.abs().max(), way
    exported = torch.export.export(xmodel.graph_module, (one,)).module()
    for module in (exported, xmodel):
        leaf = one.clone().requires_grad_()
        gradient = torch.autograd.grad(module(leaf)[0, 1], leaf)[0]
        assert (one * gradient - many[:1]).abs().max() < 1e-10 * many.abs().max()
    if rules == "gradient":
        assert torch.autograd.gradcheck(lambda t: xmodel(t)[:, 1], leaf)


class Distances(nn.Module):
    """Distances to prototypes, or between the rows of two signals."""

    def __init__(self, p: float, prototypes: bool) -> None:
        super().__init__()
        self.p, self.prototypes = p, prototypes
        self.layer, self.rows = nn.Linear(4, 5), nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return -torch.cdist(z, self.rows if self.prototypes else z.flip(-1) + self.rows[:3], self.p)


@pytest.mark.parametrize("prototypes", [True, False])
@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, float("inf")])
def test_distances_under_many_targets(p, prototypes):
    """PyTorch's backward of distances gives every target the result of the first under vmap."""
    torch.manual_seed(0)
    model, x = Distances(p, prototypes).double(), torch.randn(3, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x, rules="gradient")
    many = xmodel.explain(x, targets=[0, 2, 1]).relevance["x"]
    leaf = x.clone().requires_grad_()
    for each, target in zip(many, (0, 2, 1), strict=True):
        (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
        torch.testing.assert_close(each, x * gradient, rtol=1e-9, atol=1e-12)
        alone = xmodel.lower(x, target=target).explain(x).relevance["x"]
        torch.testing.assert_close(alone, x * gradient, rtol=1e-9, atol=1e-12)


def test_distances_of_batches_of_rows_under_many_targets():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.rows = nn.Linear(4, 5), nn.Parameter(torch.randn(3, 5))

        def forward(self, x):
            return torch.cdist(self.layer(x), self.rows).sum(1)

    model, x = Pairs().double(), torch.randn(2, 7, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    many = xmodel.explain(x, targets=[0, 1, 2]).relevance["x"]
    for target, each in enumerate(many):
        torch.testing.assert_close(each, xmodel.explain(x, target=target).relevance["x"], rtol=1e-9, atol=1e-12)
