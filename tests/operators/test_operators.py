"""Every operator people call: conservation, and input x gradient against autograd."""

import sys
from pathlib import Path

import pytest
import torch
from models import few
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.graph.location import source_line

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from operator_survey.check import problems
from operator_survey.functionals import FUNCTIONALS, FURTHER, NOT_YET, OUT_OF_REACH, X

WORKING = [n for n in FUNCTIONALS | FURTHER if n not in OUT_OF_REACH and n not in NOT_YET]


@pytest.mark.parametrize("name", few(WORKING, *WORKING[::4]))
def test_functional(name):
    assert problems(name, (FUNCTIONALS | FURTHER)[name], X) == []


def test_nearly_all_work():
    assert len(set(FUNCTIONALS) - set(OUT_OF_REACH) - set(NOT_YET)) >= 165


@pytest.mark.parametrize("name", list(OUT_OF_REACH))
def test_what_is_out_of_reach_says_so(name):
    with pytest.raises(lrp_fx.errors.LrpError):
        problems(name, FUNCTIONALS[name], X)


class Wrapped(nn.Module):
    """A function of an input, behind a layer."""

    def __init__(self, function, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.inner = function, nn.Linear(width, width)
        self.double().eval()

    def forward(self, x):
        return self.function(self.inner(x))


def test_what_is_written_out_keeps_free_sizes_and_where_it_was_written():
    """One capture serves other sizes, and nodes name the module and the line that called the operator."""
    xmodel = lrp_fx.convert(
        Wrapped(lambda h: F.cosine_similarity(h, h.flip(1), dim=-1)), torch.randn(2, 5, 6).double(), rules="attnlrp"
    )
    assert all("cosine_similarity" not in str(n.target) for n in xmodel.graph_module.graph.nodes)
    for size in ((3, 4, 6), (1, 9, 6)):
        x = torch.randn(size).double()
        assert torch.allclose(xmodel(x), xmodel.model(x), rtol=1e-12)
        assert xmodel.explain(x, target=lambda o: o.sum(1)).ledger.balance < 1e-12
    assert len(xmodel.captures) == 1
    written = [n for n in xmodel.current.captured.graph_module.graph.nodes if n.op == "call_function"]
    lines = {source_line(n).partition(": ")[2] for n in written if "linear" not in str(n.target)}
    assert lines == {"return self.function(self.inner(x))"}


def test_products_along_a_dimension_are_shared_by_all_factors():
    """n factors get 1/n each, also of a prefix, and also where one of them is 0; sizes stay free."""
    for count in (6, 4):
        h = torch.randn(2, count, dtype=torch.float64)
        h[1, 2] = 0
        product = lrp_fx.convert(Alone(lambda x: x.prod(-1, keepdim=True)), torch.randn(3, 5).double(), rules="attnlrp")
        relevance = product.explain(h, target=0).relevance["x"]
        assert torch.allclose(relevance, (h.prod(-1, keepdim=True) / count).expand_as(h), rtol=1e-12, atol=0)
        prefix = lrp_fx.convert(Alone(lambda x: x.cumprod(-1)), torch.randn(3, 5).double(), rules="attnlrp")
        relevance = prefix.explain(h, target=2).relevance["x"]
        expected = torch.where(torch.arange(count) < 3, h[:, :3].prod(-1, keepdim=True) / 3, 0.0)
        assert torch.allclose(relevance, expected, rtol=1e-12, atol=0)


class Alone(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_determinant_is_a_product_of_as_many_factors_as_it_has_rows():
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    relevance = (
        lrp_fx.convert(Alone(lambda a: torch.linalg.det(a)[:, None]), x, rules="attnlrp")
        .explain(x, target=0)
        .relevance["x"]
    )
    expected = torch.linalg.det(x)[:, None, None] * torch.linalg.inv(x).mT * x / 3
    assert torch.allclose(relevance, expected, rtol=1e-10)


def test_a_solution_is_a_quotient():
    """x = A^-1 b: half each to A and b, as of b / a."""
    a = torch.randn(2, 3, 3, dtype=torch.float64) + 3 * torch.eye(3).double()
    b = torch.randn(2, 3, 1, dtype=torch.float64)

    class Solve(nn.Module):
        def forward(self, a, b):
            return torch.linalg.solve(a, b).flatten(1)

    xmodel = lrp_fx.convert(Solve(), a, b, rules="attnlrp")
    found = xmodel.explain(a, b, target=1)
    for name in "ab":
        assert torch.allclose(found.relevance[name].flatten(1).sum(1), found.target / 2, rtol=1e-10)
    only_a = lrp_fx.convert(Alone(lambda a: torch.linalg.solve(a, b).flatten(1)), a, rules="attnlrp").explain(
        a, target=1
    )
    assert torch.allclose(only_a.relevance["x"].flatten(1).sum(1), only_a.target, rtol=1e-10)
    assert xmodel.verify(a, b, target=1).passed


def test_a_declaration_wins_over_what_an_operator_is_made_of():
    x = torch.randn(2, 6, dtype=torch.float64)
    model = Wrapped(lambda h: F.cosine_similarity(h, h.flip(1))[:, None])
    xmodel = lrp_fx.convert(model, x, ops={"constant": {"aten.cosine_similarity": ""}, "movement": {}}, rules="attnlrp")
    assert any("cosine_similarity" in str(n.target) for n in xmodel.graph_module.graph.nodes)


def test_softmax_over_segments_spelled_with_scatter_converts():
    """Same relevance as the dense spelling with a maximum that carries none."""

    def attention(e, v, scatter):
        if not scatter:
            p = (e - e.amax(0, keepdim=True).detach()).exp()
            return ((p / p.sum(0, keepdim=True)) * v).sum(0, keepdim=True)
        t = torch.zeros(e.shape[0], dtype=torch.long)
        m = torch.full((1, 1), -1e9, dtype=e.dtype).scatter_reduce(0, t[:, None], e, "amax")
        p = (e - m[t]).exp()
        z = torch.zeros(1, 1, dtype=e.dtype).index_add(0, t, p)
        return ((p / z[t]) * v).sum(0, keepdim=True)

    x = torch.randn(5, 6, dtype=torch.float64)
    gradients = []
    for scatter in (False, True):
        xmodel = lrp_fx.convert(Wrapped(lambda h, s=scatter: attention(h[:, :1], h[:, 1:], s)), x, rules="attnlrp")
        found = xmodel.explain(x, target=lambda o: o[:, 1])
        assert found.ledger.balance < 1e-8 and xmodel.verify(x, target=lambda o: o[:, 1]).passed
        gradients.append(xmodel.explain(x, target=lambda o: o[:, 1], rules="gradient").relevance["x"])
    assert torch.allclose(*gradients, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", few(["cosine_similarity", "prod", "cumprod", "logaddexp", "lp_pool", "atan2"], "atan2")
)
def test_half_precision_agrees_with_double(name, dtype):
    function, tolerance = FUNCTIONALS[name], 0.06
    if name in ("cosine_similarity", "atan2", "logaddexp"):
        function = {
            "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(-1)),
            "atan2": lambda x: torch.atan2(x, x.flip(-1)),
            "logaddexp": lambda x: torch.logaddexp(x, x.flip(-1)),
        }[name]

    def total(o):
        return (o.float() * torch.arange(1, o.numel() + 1).view(o.shape)).sum().reshape(1)

    x = (X / 2).to(dtype)
    model = Wrapped(function)
    exact = lrp_fx.convert(model, x.double(), rules="attnlrp").explain(x.double(), target=total)
    rounded = lrp_fx.convert(Wrapped(function).to(dtype), x, rules="attnlrp").explain(x, target=total)
    scale = exact.relevance["x"].abs().max()
    assert (rounded.relevance["x"].double() - exact.relevance["x"]).abs().max() < tolerance * scale
    assert abs(rounded.relevance["x"].double().sum() - exact.relevance["x"].sum()) < tolerance * scale * 3
