"""Relevance does not depend on how the author spelled a function (the critique of arXiv:2510.18810)."""

import functools
import math

import pytest
import torch
from models import few
from torch import nn
from torch.nn import functional as F

import lrp_fx

D = 8


class Net(nn.Module):
    """A small network around the spelling under test, with shared weights."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.other, self.outer = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3)
        self.scale = nn.Parameter(torch.randn(D))
        self.function = function
        self.double()

    def forward(self, x):
        return self.outer(self.function(self.inner(x), self.other(x), self.scale)).sum(1)


def relevance(function, rules):
    torch.manual_seed(0)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    attribution = lrp_fx.convert(Net(function), x, rules=rules).explain(x, target=1)
    assert attribution.ledger.balance < 1e-9
    return attribution.relevance["x"]


def heads(x):
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def merge(x):
    return x.transpose(1, 2).flatten(2)


def attention(q, k, v, **kwargs):
    return merge(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), **kwargs))


def eager(q, k, v, causal=False):
    scores = heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(4)
    if causal:
        scores = scores + torch.full((5, 5), float("-inf"), dtype=q.dtype).triu(1)
    return merge(F.softmax(scores, -1) @ heads(v))


def manual_softmax(q, k, v):
    scores = heads(q) @ heads(k).transpose(-1, -2) * 0.5
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return merge((e / e.sum(-1, keepdim=True)) @ heads(v))


SEGMENT = torch.tensor([0, 1, 0, 1, 1])


def edges(a):
    """(15, 4) logits of edges that go into 4 nodes."""
    return a.flatten(0, 1)[:, :4].repeat(2, 1)[:15], torch.arange(15) % 4


def segments(total, weigh=lambda z, e, s: e / s):
    """Softmax over segments of edges, as graph attention spells it, in sums of ``total``; ``weigh`` divides by them."""

    def function(a, b, w):
        logits, index = edges(a)
        e = (z := logits - logits.amax()).exp()
        return (weigh(z, e, total(e, index)[index]) * edges(b)[0]).sum(1)[:10].view(2, 5, 1).expand(2, 5, D)

    return function


def one_hot_segments(a, b, w, normalise=F.softmax):
    """The same by a table with a row for every node and a softmax over edges."""
    logits, index = edges(a)
    table = torch.where(F.one_hot(index, 4)[..., None].bool(), logits[:, None], -torch.inf)
    weights = normalise(table, 0)[torch.arange(15), index]
    return (weights * edges(b)[0]).sum(1)[:10].view(2, 5, 1).expand(2, 5, D)


def apart(one, other):
    """Shares of two tensors, put to use."""
    return one * torch.linspace(-1, 1, D).to(one) + other.flip(-1).tanh()


def running(chunk):
    """Online softmax: values are mixed chunk by chunk, and divided at the end."""

    def function(a, b, w):
        q, k, v = heads(a), heads(b), heads(a + b)
        top = torch.full((2, 2, 5, 1), -torch.inf, dtype=q.dtype)
        total, mixed = torch.zeros_like(top), torch.zeros_like(q)
        for start in range(0, 5, chunk):
            scores = q @ k[:, :, start : start + chunk].mT / math.sqrt(4)
            new = torch.maximum(top, scores.amax(-1, keepdim=True))
            e, kept = torch.exp(scores - new), torch.exp(top - new)
            total = total * kept + e.sum(-1, keepdim=True)
            mixed = mixed * kept + e @ v[:, :, start : start + chunk]
            top = new
        return merge(mixed / total)

    return function


def late(a, b, w):
    q, k, v = heads(a), heads(b), heads(a + b)
    e = torch.exp(q @ k.mT * 0.5)
    return merge((e @ v) * (1 / (e @ torch.ones(5, 1, dtype=q.dtype))))


def beside(function):
    """The function with a path beside it, for rules that stop a softmax."""
    return lambda a, b, w: function(a, b, w) + b


def grouped(x):
    return x[..., :4].unflatten(-1, (1, 4)).transpose(1, 2)


def rms(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def layer(x, w):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w


def new_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


SPELLINGS = {
    "attention": [lambda a, b, w, f=f: f(a, b, a + b) for f in (attention, eager, manual_softmax)],
    "attention in running form": [
        lambda a, b, w: attention(a, b, a + b), running(2), running(1), running(5), late,
    ],
    "softmax": [
        lambda a, b, w: F.softmax(a, -1) * b,
        lambda a, b, w: (e := a.exp()) / e.sum(-1, keepdim=True) * b,
        lambda a, b, w: (e := (a - a.amax(-1, keepdim=True)).exp()) / (e.mean(-1, keepdim=True) * D) * b,
        lambda a, b, w: (e := (a - a.amax(-1, keepdim=True).detach()).exp()) / (e @ torch.ones(D, 1).to(e)) * b,
        lambda a, b, w: (e := a.exp()) * e.sum(-1, keepdim=True).reciprocal() * b,
        lambda a, b, w: (e := a.exp()) * (1 / torch.einsum("bij->bi", e)[..., None]) * b,
        lambda a, b, w: (e := a.exp()) * e.sum(-1, keepdim=True).pow(-1) * b,
        lambda a, b, w: torch.exp(F.log_softmax(a, -1)) * b,
        lambda a, b, w: torch.exp(a - torch.logsumexp(a, -1, keepdim=True)) * b,
        lambda a, b, w: torch.exp(a - a.exp().sum(-1, keepdim=True).log()) * b,
    ],
    "softmax over segments": [
        one_hot_segments,
        segments(lambda e, i: torch.zeros(4, 4).to(e).index_add(0, i, e)),
        segments(lambda e, i: torch.zeros(4, 4).to(e).scatter_add(0, i[:, None].expand_as(e), e)),
        segments(lambda e, i: torch.zeros(4, 4).to(e).scatter_reduce(0, i[:, None].expand_as(e), e, "sum")),
        segments(lambda e, i: F.one_hot(i, 4).T.to(e) @ e),
    ],
    "softmax over separate tensors": list(map(beside, (
        lambda a, b, w: apart(*F.softmax(torch.stack([a, b]), 0)),
        lambda a, b, w: apart((e := a.exp()) / (s := e + (f := b.exp())), f / s),
        lambda a, b, w: apart(*((e := torch.stack([a.exp(), b.exp()])) / e.sum(0))),
        lambda a, b, w: apart((e := a.exp()) * (r := (e + (f := b.exp())).reciprocal()), f * r),
        lambda a, b, w: apart(
            (e := (a - (m := torch.maximum(a, b))).exp()) / (s := e + (f := (b - m).exp())), f / s
        ),
        lambda a, b, w: apart((e := a.exp()).flip(1).flip(1) / (s := e + (f := b.exp())), f.reshape(2, 5, D) / s),
        lambda a, b, w: apart(torch.exp(a - (t := torch.logaddexp(a, b))), torch.exp(b - t)),
        lambda a, b, w: apart(torch.exp(a - (t := (a.exp() + b.exp()).log())), torch.exp(b - t)),
    ))),
    "softmax over two groups": [
        lambda a, b, w: F.softmax(torch.cat([a, b], -1), -1)[..., :D] * a,
        lambda a, b, w: (e := a.exp()) / (e.sum(-1, keepdim=True) + b.exp().sum(-1, keepdim=True)) * a,
    ],
    "log-softmax over separate tensors": list(map(beside, (
        lambda a, b, w: F.log_softmax(torch.stack([a, b]), 0)[0] * w,
        lambda a, b, w: (a - torch.logaddexp(a, b)) * w,
        lambda a, b, w: (a - (a.exp() + b.exp()).log()) * w,
        lambda a, b, w: ((e := a.exp()) / (e + b.exp())).log() * w,
        lambda a, b, w: (a - ((m := torch.maximum(a, b)) + ((a - m).exp() + (b - m).exp()).log())) * w,
    ))),
    "log-softmax over segments": [
        functools.partial(one_hot_segments, normalise=F.log_softmax),
        segments(lambda e, i: torch.zeros(4, 4).to(e).index_add(0, i, e), lambda z, e, s: (e / s).log()),
        segments(lambda e, i: torch.zeros(4, 4).to(e).index_add(0, i, e), lambda z, e, s: z - s.log()),
        segments(lambda e, i: F.one_hot(i, 4).T.to(e) @ e, lambda z, e, s: z - s.log()),
        segments(
            lambda e, i: torch.zeros(4, 4).to(e).scatter_reduce(0, i[:, None].expand_as(e), e, "sum").log(),
            lambda z, e, s: z - s,
        ),
    ],
    "log-softmax": [
        lambda a, b, w: F.log_softmax(a, -1) + b,
        lambda a, b, w: F.softmax(a, -1).log() + b,
        lambda a, b, w: a - torch.logsumexp(a, -1, keepdim=True) + b,
        lambda a, b, w: a - a.exp().sum(-1, keepdim=True).log() + b,
        lambda a, b, w: (z := a - a.amax(-1, keepdim=True)) - z.exp().sum(-1, keepdim=True).log() + b,
        lambda a, b, w: a - ((m := a.amax(-1, keepdim=True)) + (a - m).exp().sum(-1, keepdim=True).log()) + b,
        lambda a, b, w: torch.log((e := a.exp()) / e.sum(-1, keepdim=True)) + b,
    ],
    "log-sum-exp": [
        lambda a, b, w: torch.logsumexp(a, -1, keepdim=True) * b,
        lambda a, b, w: a.exp().sum(-1, keepdim=True).log() * b,
        lambda a, b, w: ((m := a.amax(-1, keepdim=True)) + (a - m).exp().sum(-1, keepdim=True).log()) * b,
    ],
    "causal attention": [
        lambda a, b, w: attention(a, b, a, is_causal=True),
        lambda a, b, w: eager(a, b, a, causal=True),
        lambda a, b, w: attention(a, b, a, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
    ],
    "grouped queries": [
        lambda a, b, w: merge(F.scaled_dot_product_attention(heads(a), grouped(b), grouped(a), enable_gqa=True)),
        lambda a, b, w: merge(
            F.scaled_dot_product_attention(
                heads(a), grouped(b).repeat_interleave(2, 1), grouped(a)[:, :, None].expand(2, 1, 2, 5, 4).reshape(2, 2, 5, 4)
            )
        ),
    ],
    "silu": [
        lambda a, b, w: F.silu(a) * b,
        lambda a, b, w: a * torch.sigmoid(a) * b,
        lambda a, b, w: a * (torch.sigmoid(a) * b),
        lambda a, b, w: b * (a / (1 + torch.exp(-a))),
        lambda a, b, w: a * (b * torch.sigmoid(a)),
    ],
    "gelu": [lambda a, b, w: F.gelu(a, approximate="tanh"), lambda a, b, w: new_gelu(a)],
    "exact gelu": [
        lambda a, b, w: F.gelu(a),
        lambda a, b, w: a * 0.5 * (1.0 + torch.erf(a / math.sqrt(2.0))),
        lambda a, b, w: a * (0.5 + 0.5 * torch.erf(a * math.sqrt(0.5))),
    ],
    "sigmoid": [lambda a, b, w: torch.sigmoid(a), lambda a, b, w: 1 / (1 + torch.exp(-a))],
    "softplus": [lambda a, b, w: F.softplus(a), lambda a, b, w: torch.log(1 + torch.exp(a))],
    "mish": [lambda a, b, w: F.mish(a), lambda a, b, w: a * torch.tanh(F.softplus(a))],
    "hardswish": [lambda a, b, w: F.hardswish(a), lambda a, b, w: a * F.relu6(a + 3) / 6],
    "relu as a gate": [
        lambda a, b, w: F.relu(a) * b,
        lambda a, b, w: a.clamp(min=0) * b,
        lambda a, b, w: torch.maximum(a, torch.zeros_like(a)) * b,
        lambda a, b, w: torch.maximum(torch.tensor(0.0, dtype=a.dtype), a) * b,
        lambda a, b, w: torch.where(a > 0, a, 0.0) * b,
        lambda a, b, w: torch.where(a <= 0, torch.zeros_like(a), a) * b,
        lambda a, b, w: a.masked_fill(a < 0, 0.0) * b,
        lambda a, b, w: a * (a > 0) * b,
        lambda a, b, w: (a > 0).to(a) * a * b,
    ],
    "squared relu": [lambda a, b, w: F.relu(a).square() * b, lambda a, b, w: F.relu(a) * F.relu(a) * b],
    "relu": [
        lambda a, b, w: F.relu(a),
        lambda a, b, w: torch.where(a > 0, a, torch.zeros_like(a)),
        lambda a, b, w: a * (a > 0),
        lambda a, b, w: a.clamp(min=0),
        lambda a, b, w: torch.maximum(a, torch.zeros_like(a)),
    ],
    "rms norm": [
        lambda a, b, w: F.rms_norm(a, (D,), w, 1e-6),
        lambda a, b, w: rms(a, w),
        lambda a, b, w: w * (a / torch.sqrt((a * a).mean(-1, keepdim=True) + 1e-6)),
        lambda a, b, w: w * rms(a.to(torch.float64), 1.0),
        lambda a, b, w: a * (torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-6) * w),
    ],
    "layer norm": [
        lambda a, b, w: F.layer_norm(a, (D,), w),
        lambda a, b, w: layer(a, w),
        lambda a, b, w: w * (a - a.mean(-1, keepdim=True)) * torch.rsqrt(a.var(-1, correction=0, keepdim=True) + 1e-5),
        lambda a, b, w: w * (a - (m := torch.var_mean(a, -1, correction=0, keepdim=True))[1]) / (m[0] + 1e-5).sqrt(),
    ],
    "gated norm": [
        lambda a, b, w: F.rms_norm(a * F.silu(b), (D,), w, 1e-6),
        lambda a, b, w: rms(a * F.silu(b), w),
    ],
    "l2": [
        lambda a, b, w: F.normalize(a, dim=-1),
        lambda a, b, w: a / a.pow(2).sum(-1, keepdim=True).sqrt(),
        lambda a, b, w: a / torch.linalg.vector_norm(a, dim=-1, keepdim=True),
    ],
    "product": [
        lambda a, b, w: (a * b) * F.tanh(a),
        lambda a, b, w: a * (b * F.tanh(a)),
        lambda a, b, w: (a * F.tanh(a)) * b,
    ],
    "three factors": [
        lambda a, b, w: (a * b) * (a + b),
        lambda a, b, w: a * (b * (a + b)),
        lambda a, b, w: torch.einsum("bsd,bsd,bsd->bsd", a, b, a + b),
    ],
    "product of one tensor": [
        lambda a, b, w: F.relu(a) * a * b,
        lambda a, b, w: a * (b * F.relu(a)),
        lambda a, b, w: F.relu(a).pow(2) * b,
    ],
    "square": [
        lambda a, b, w: a * a * b,
        lambda a, b, w: a.pow(2) * b,
        lambda a, b, w: b * torch.square(a),
        lambda a, b, w: (a * b) * a,
    ],
    "quotient": [
        lambda a, b, w: a / b.exp(),
        lambda a, b, w: a * b.exp().reciprocal(),
        lambda a, b, w: a * b.exp().pow(-1),
        lambda a, b, w: a * (1 / b.exp()),
    ],
    "linear": [
        lambda a, b, w: a * w + b,
        lambda a, b, w: torch.addcmul(b, a, w),
        lambda a, b, w: b - a * -w,
        lambda a, b, w: torch.einsum("bsd,d->bsd", a, w) + b,
        lambda a, b, w: a @ torch.diag(w) + b,
    ],
}  # fmt: skip

CASES = [(name, i) for name, spellings in SPELLINGS.items() for i in range(1, len(spellings))]


@pytest.mark.parametrize("rules", few(["attnlrp", "cp_lrp"], "attnlrp"))
@pytest.mark.parametrize(("name", "index"), few(CASES, *(case for case in CASES if case[1] == 1)))
def test_spelling(name, index, rules):
    first, other = relevance(SPELLINGS[name][0], rules), relevance(SPELLINGS[name][index], rules)
    assert first.abs().max() > 1e-3
    assert (first - other).abs().max() < 1e-8 * first.abs().max()


def test_glu_is_a_gate():
    x = torch.randn(2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(nn.GLU(), x)
    assert {d.role for d in xmodel.current.under(xmodel.ruleset).plan.decisions.values()} >= {"gate"}
    assert xmodel.verify(x).passed


def test_integers_that_are_added_are_constants():
    class Model(nn.Module):
        def forward(self, x):
            return (x - x.floor().long()).sum(-1, keepdim=True)

    x = 3 * torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Model(), x)
    attribution = xmodel.explain(x)
    assert xmodel.verify(x).passed and attribution.ledger.balance < 1e-12
    assert attribution.ledger["constant"] == -float(x.floor().sum())
