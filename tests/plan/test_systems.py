"""Triangular systems: relevance of (C + S) Y = B is that of its rows, in every spelling, and none is lost silently."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.analysis import analyse
from lrp_fx.analysis.triangles import Band, band
from lrp_fx.capture import capture
from lrp_fx.operators.table import OpTable

N, EYE = 5, torch.eye(5, dtype=torch.float64)
solve, triangular = torch.linalg.solve, torch.linalg.solve_triangular


def lower(a):
    """S, a strictly lower triangle of a signal."""
    return 0.5 * (a @ a.mT).tril(-1)


def by_rows(a, b):
    s, rows = lower(a), []
    for i in range(N):
        y = b[..., i, :]
        for j in range(i):
            y = y - s[..., i, j, None] * rows[j]
        rows.append(y)
    return torch.stack(rows, -2)


def by_series(a, b):
    s, term, total = lower(a), b, b
    for _ in range(N - 1):
        term = -s @ term
        total = total + term
    return total


def inverse_by_rows(a):
    """As models with a delta rule spell it."""
    t = -lower(a)
    for i in range(1, N):
        row, above = t[..., i, :i].clone(), t[..., :i, :i].clone()
        t[..., i, :i] = row + (row.unsqueeze(-1) * above).sum(-2)
    return t + torch.eye(N).to(t)


def inverse_by_series(a):
    s = -lower(a)
    total, term = torch.eye(N).to(a) + s, s
    for _ in range(N - 2):
        term = s @ term
        total = total + term
    return total


STRICT_MASK = torch.ones(N, N, dtype=torch.bool).triu()

#: spellings of (I + S)^-1 B
SOLVED = {
    "by rows": by_rows,
    "by series": by_series,
    "triangle": lambda a, b: triangular(lower(a), b, upper=False, unitriangular=True),
    "half of a matrix": lambda a, b: triangular(0.5 * a @ a.mT, b, upper=False, unitriangular=True),
    "with its diagonal": lambda a, b: triangular(EYE + lower(a), b, upper=False),
    "upper, on the right": lambda a, b: triangular(lower(a).mT, b.mT, upper=True, left=False, unitriangular=True).mT,
    "any system": lambda a, b: solve(EYE + lower(a), b),
    "vectors": lambda a, b: torch.stack([solve(EYE + lower(a), b[..., i]) for i in range(3)], -1),
    "on the right": lambda a, b: solve(EYE + lower(a).mT, b.mT, left=False).mT,
    "scaled": lambda a, b: solve(2 * (EYE + lower(a)), 2 * b),
    "masked": lambda a, b: solve(EYE - (-0.5 * a @ a.mT).masked_fill(STRICT_MASK, 0), b),
    "chosen": lambda a, b: solve(torch.where(STRICT_MASK, EYE, 0.5 * a @ a.mT), b),
    "multiplied by a mask": lambda a, b: solve(torch.eye(N).to(a) + 0.5 * (a @ a.mT) * ~STRICT_MASK, b),
    "inverse, multiplied": lambda a, b: torch.linalg.inv(torch.eye(N).to(a) + lower(a)) @ b,
    "multiplied by an inverse": lambda a, b: (b.mT @ torch.inverse(EYE + lower(a).mT)).mT,
}  # fmt: skip

#: spellings of (I + S)^-1 alone
INVERSE = {
    "by rows": inverse_by_rows,
    "by series": inverse_by_series,
    "inverse": lambda a: torch.linalg.inv(EYE + lower(a)),
    "solved": lambda a: solve(EYE + lower(a), EYE),
    "triangle": lambda a: triangular(lower(a), torch.eye(N).to(a).expand_as(a @ a.mT), upper=False, unitriangular=True),
}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("weights", torch.linspace(-1, 2, N, dtype=torch.float64))

    def forward(self, a, b):
        return (self.weights[:, None] * self.function(a, b)).sum(-2)  # no layer, whose role depends on what it reads


A, B = (torch.randn(2, N, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (4, 3))


def explained(function, rules="attnlrp", **how):
    return lrp_fx.convert(Of(function), A, B, rules=rules).explain(A, B, target=1, **how)


def same(one, other):
    for name, relevance in one.relevance.items():
        torch.testing.assert_close(relevance, other.relevance[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rules", ["attnlrp", "default", "gradient"])
@pytest.mark.parametrize("name", SOLVED)
def test_relevance_is_that_of_the_rows(name, rules):
    found = explained(SOLVED[name], rules)
    assert found.ledger.balance < 1e-12
    same(found, explained(by_rows, rules))
    assert float(found.relevance["a"].abs().sum()) > 0.1
    if rules != "gradient":
        assert abs(found.ledger["input"] - found.ledger.target) < 1e-12 * abs(found.ledger.target)


@pytest.mark.parametrize("rules", ["attnlrp", "gradient"])
@pytest.mark.parametrize("name", INVERSE)
def test_an_inverse_has_the_relevance_of_its_rows(name, rules):
    """With a constant on the other side the triangle gets all but what the constant gives without it."""
    found = explained(lambda a, b: INVERSE[name](a) + 0 * b.sum(), rules)
    assert found.ledger.balance < 1e-12
    same(found, explained(lambda a, b: inverse_by_rows(a) + 0 * b.sum(), rules))
    if rules == "attnlrp":
        identity = float(Of(lambda a, b: EYE)(A, B)[1]) * len(A)
        assert abs(found.ledger.target - found.ledger["input"] - identity) < 1e-12


def test_an_inverse_that_is_written_out_and_multiplied():
    """(S S) B is not divided as S (S B) is, so these agree with each other, and not with the system (docs/rules.md)."""
    found = explained(lambda a, b: inverse_by_series(a) @ b)
    same(found, explained(lambda a, b: inverse_by_rows(a) @ b))
    assert abs(found.ledger["input"] - found.ledger.target) < 1e-12 * abs(found.ledger.target)


def test_a_constant_side_leaves_the_triangle_its_relevance():
    """It used to have none at all, and said so nowhere."""
    found = explained(lambda a, b: triangular(lower(a), B.expand(2, N, 3), upper=False, unitriangular=True) + 0 * b)
    same(found, explained(lambda a, b: by_series(a, B.expand(2, N, 3)) + 0 * b))
    assert float(found.relevance["a"].abs().sum()) > 0.1


@pytest.mark.parametrize("name", ["triangle", "with its diagonal", "inverse, multiplied"])
def test_every_way_of_explaining_agrees(name):
    xmodel = lrp_fx.convert(Of(SOLVED[name]), A, B, rules="attnlrp")
    plain = xmodel.explain(A, B, target=1)
    lowered = xmodel.lower(A, B, target=1)(A, B, target=1).relevance
    many = {k: v[1] for k, v in xmodel.explain(A, B, targets=[0, 1]).relevance.items()}
    for way in (xmodel.explain(A, B, target=1, memory="low").relevance, lowered, many):
        for input, relevance in way.items():
            torch.testing.assert_close(relevance, plain.relevance[input], rtol=1e-10, atol=1e-12)
    assert torch.equal(xmodel(A, B), xmodel.model(A, B))


def test_another_matrix_shares_with_the_other_side():
    """A signal on the diagonal divides: degree -1, half to each, as in any quotient."""
    found = explained(lambda a, b: triangular(EYE + 0.1 * (a @ a.mT).tril(), b, upper=False))
    assert (
        found.ledger.balance < 1e-12
        and not lrp_fx.convert(Of(lambda a, b: solve(EYE + a @ a.mT, b)), A, B, rules="attnlrp").current.facts.systems
    )
    assert float(found.relevance["a"].abs().sum()) > 0.01


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a: a.tril(-1), Band(highest=-1)),
        (lambda a: a.triu(2).mT, Band(highest=-2)),
        (lambda a: a.triu(-1).tril(1), Band(-1, 1)),
        (lambda a: a.tril(-1) * a, Band(highest=-1)),
        (lambda a: -a.tril(-1) / (1 + a * a) + a.triu(1).mT, Band(highest=-1)),
        (lambda a: a.masked_fill(STRICT_MASK[:4, :4], 0.0), Band(-3, -1)),
        (lambda a: a.masked_fill(STRICT_MASK[:4, :4], 1.0), Band(-3, 3)),
        (lambda a: torch.where(~STRICT_MASK[:4, :4], a, 0.0).unsqueeze(0), Band(-3, -1)),
        (lambda a: a.tril(-1) + 1, Band()),
        (lambda a: a[:, :1].tril(-1) + a, Band()),
        (lambda a: a.tril(-1).softmax(-1), Band()),
    ],
)
def test_where_a_matrix_has_entries(function, expected):
    model = Of(lambda a, b: function(a))
    model.forward = lambda a: function(a)
    graph = capture(model, (torch.rand(4, 4),), {}).graph_module.graph
    assert band(analyse(graph, OpTable.load()), graph.output_node().args[0][0]) == expected
