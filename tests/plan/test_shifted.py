"""A constant plus a signal, as a factor: what is written x (c + s) has the relevance of c x + x s, in every spelling."""

import pytest
import torch
from torch import nn

import lrp_fx

EYE = torch.eye(4, dtype=torch.float64)
ROW = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)

#: functions of two signals a and s -> their spellings
SPELLINGS = {
    "modulation": (
        lambda a, s: a + a * s, lambda a, s: a * (1 + s), lambda a, s: (s + 1) * a, lambda a, s: torch.mul(a, 1.0 + s),
    ),
    "counterpart": (lambda a, s: a - a * s, lambda a, s: a * (1 - s), lambda a, s: (1 - s) * a),
    "weighed": (lambda a, s: 6 * a + 2 * a * s, lambda a, s: 2 * a * (3 + s), lambda a, s: 2 * (s + 3) * a),
    "weighed sum": (lambda a, s: a + 0.5 * a * s, lambda a, s: a * torch.add(torch.ones(4).to(s), s, alpha=0.5)),
    "a gate": (lambda a, s: a + a * torch.tanh(s), lambda a, s: a * (1 + torch.tanh(s))),
    "a matrix": (
        lambda a, s: s + (a.unsqueeze(-1) * a.unsqueeze(-2) @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: ((EYE + a.unsqueeze(-1) * a.unsqueeze(-2)) @ s.unsqueeze(-1)).squeeze(-1),
    ),
    "a matrix plus a number": (
        lambda a, s: s.sum(-1, keepdim=True) + (outer(a) @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: ((1 + outer(a)) @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: torch.bmm(outer(a) + torch.ones(4).to(s), s.unsqueeze(-1)).squeeze(-1),
    ),
    "a matrix in a batched product": (
        lambda a, s: s + (outer(a) @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: torch.bmm(EYE + outer(a), s.unsqueeze(-1)).squeeze(-1),
    ),
    "a sum of sums": (
        lambda a, s: 3 * a + 2 * a * s - 2 * a * s.flip(-1) + a * s.roll(1, -1),
        lambda a, s: a * (1 + 2 * (s + 1 - s.flip(-1)) + s.roll(1, -1)),
        lambda a, s: (s.roll(1, -1) - 2 * (s.flip(-1) - s) + 3) * a,
        lambda a, s: a * ((torch.ones(4).to(s) - 2 * s.flip(-1)) + (s.roll(1, -1) + 2) + 2 * s),
    ),
    "a sum of matrices": (
        lambda a, s: s + (outer(a) @ s.unsqueeze(-1) + (outer(a) @ outer(a)) @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: ((EYE + outer(a) + outer(a) @ outer(a)) @ s.unsqueeze(-1)).squeeze(-1),
    ),
    "a chain": (
        lambda a, s: (t := a.flip(-1)) * a + t * a * s,
        lambda a, s: a.flip(-1) * a * (1 + s),
        lambda a, s: a.flip(-1) * ((1 + s) * a),
        lambda a, s: (1 + s) * (a * a.flip(-1)),
    ),
    "two of a chain": (
        lambda a, s: a + a * (t := s.flip(-1)) + a * s + a * t * s,
        lambda a, s: a * (1 + s) * (1 + s.flip(-1)),
        lambda a, s: (1 + s.flip(-1)) * (a * (s + 1)),
        lambda a, s: a * ((1 + s) * (1 + s.flip(-1))),
    ),
    "moved": (
        lambda a, s: a + a * s, lambda a, s: a * (1 + s).unsqueeze(1).squeeze(1), lambda a, s: a * (1 + s)[:, None][:, 0],
        lambda a, s: (a.T * (s + 1).T).T, lambda a, s: (a.view(-1) * (1 + s).reshape(-1)).view(a.shape),
        lambda a, s: a * torch.ones_like(s).add(s).flip(1).flip(1), lambda a, s: a * (1 + s).expand(1, 3, 4)[0],
        lambda a, s: a * (1 + s).split(4, 1)[0],
    ),
    "moved and weighed": (
        lambda a, s: 6 * a - 2 * a * s.flip(1), lambda a, s: a * (2 * (3 - s).flip(1)), lambda a, s: 2 * (3 - s).flip(1) * a,
        lambda a, s: a * (2 * (torch.arange(3.0, 4.0).to(s) - s)).flip(1),
    ),
    "a moved tensor plus a signal": (
        lambda a, s: a * ROW.flip(0) + a * s.flip(1), lambda a, s: a * (ROW + s).flip(1), lambda a, s: (s + ROW).flip(1) * a,
    ),
    "a moved matrix": (
        lambda a, s: s.sum(-1, keepdim=True) + (outer(a).mT @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: ((1 + outer(a)).mT @ s.unsqueeze(-1)).squeeze(-1),
        lambda a, s: torch.einsum("bij,bi->bj", 1 + outer(a), s),
        lambda a, s: ((1 + outer(a).mT) @ s.unsqueeze(-1)).squeeze(-1),
    ),
    "weighed in a chain": (
        lambda a, s: 6 * a - 3 * a * (t := s.flip(-1)) + 2 * a * s - a * t * s,
        lambda a, s: a * (3 + s) * (2 - s.flip(-1)),
    ),
}  # fmt: skip

#: the same of products in which the constants have a term of their own
WITH_CONSTANT = {
    "both": (lambda a, s: 1 + a + s + a * s, lambda a, s: (1 + a) * (1 + s), lambda a, s: (s + 1) * (1 + a)),
    "both, weighed": (lambda a, s: 6 - 3 * a + 2 * s - a * s, lambda a, s: (2 - a) * (3 + s)),
    "three": (
        lambda a, s: 1 + a + s + (t := a.flip(-1)) + a * s + a * t + s * t + a * s * t,
        lambda a, s: (1 + a) * (1 + s) * (1 + a.flip(-1)),
    ),
}


def outer(a):
    return a.unsqueeze(-1) * a.unsqueeze(-2)


class Of(nn.Module):
    def __init__(self, function, bias=False):
        super().__init__()
        self.a, self.s, self.head = nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias), nn.Linear(4, 3, bias=False)
        self.function = function

    def forward(self, x, y):
        return self.head(self.function(self.a(x), self.s(y)))


def net(function, **how):
    torch.manual_seed(0)
    return Of(function, **how).double().eval()


X, Y = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp", "gradient", "relp", "lstm_lrp"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_relevance_is_that_of_the_function(name, rules):
    expected = None
    for function in SPELLINGS[name]:
        found = lrp_fx.convert(net(function), X, Y, rules=rules).explain(X, Y, target=1)
        assert found.ledger.balance < 1e-12
        expected = expected or found
        for input, relevance in found.relevance.items():
            torch.testing.assert_close(relevance, expected.relevance[input], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rules", ["attnlrp", "gradient"])
@pytest.mark.parametrize("name", WITH_CONSTANT)
def test_a_product_of_sums_adds_what_its_terms_add(name, rules):
    expected = None
    for function in WITH_CONSTANT[name]:
        found = lrp_fx.convert(net(function), X, Y, rules=rules).explain(X, Y, target=1)
        assert found.ledger.balance < 1e-12
        expected = expected or found
        for input, relevance in found.relevance.items():
            torch.testing.assert_close(relevance, expected.relevance[input], rtol=1e-8, atol=1e-10)
        if rules == "attnlrp":
            assert abs(found.ledger["constant"] - expected.ledger["constant"]) < 1e-10


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_constant_takes_relevance_under_a_rule_that_divides(name):
    for function in SPELLINGS[name]:
        found = lrp_fx.convert(net(function), X, Y, rules="attnlrp").explain(X, Y, target=1)
        assert abs(found.ledger["input"] - found.ledger.target) < 1e-12 * abs(found.ledger.target)


@pytest.mark.parametrize("name", ["modulation", "a matrix"])
def test_every_way_of_explaining_agrees(name):
    xmodel = lrp_fx.convert(net(SPELLINGS[name][1]), X, Y, rules="attnlrp")
    plain = xmodel.explain(X, Y, target=1)
    ways = [
        xmodel.explain(X, Y, target=1, memory="low").relevance,
        xmodel.lower(X, Y, target=1)(X, Y, target=1).relevance,
        {k: v[1] for k, v in xmodel.explain(X, Y, targets=[0, 1]).relevance.items()},
    ]
    for way in ways:
        for input, relevance in way.items():
            torch.testing.assert_close(relevance, plain.relevance[input], rtol=1e-10, atol=1e-12)
    assert torch.equal(xmodel(X, Y), xmodel.model(X, Y))


def test_where_the_factor_is_zero_nothing_is_lost():
    """s = -1: the output is 0, and what x has by c x, x s takes away."""
    model = net(SPELLINGS["modulation"][1])
    model.s.weight.data = torch.eye(4, dtype=torch.float64)
    y = -torch.ones(3, 4, dtype=torch.float64)
    found = lrp_fx.convert(model, X, y, rules="attnlrp").explain(X, y, target=1)
    assert float(found.relevance["x"].abs().sum()) > 0.01 and abs(found.ledger.total) < 1e-12


OTHERS = {
    "a nonlinearity": lambda a, s: a * (1 + torch.tanh(a)) + s,
    "a normalization": lambda a, s: a * (1 + torch.rsqrt(a.pow(2).mean(-1, keepdim=True))) + s,
    "a function of a factor": lambda a, s: a * (1 + s) * torch.sigmoid(s),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_left_alone(name):
    xmodel = lrp_fx.convert(net(OTHERS[name]), X, Y, rules="attnlrp")
    assert not xmodel.current.facts.shifted
    assert xmodel.explain(X, Y, target=1).ledger.balance < 1e-12


def test_a_bias_is_no_literal():
    """What a layer adds stays the layer's, whether it is spelled within it or behind it."""

    class Biased(Of):
        def forward(self, x, y):
            return self.head(self.a(x) * (nn.functional.linear(y, self.s.weight) + self.s.bias))

    torch.manual_seed(0)
    spelled = Biased(None, bias=True).double().eval()
    fused = net(lambda a, s: a * s, bias=True)
    fused.load_state_dict(spelled.state_dict())
    one, other = (lrp_fx.convert(m, X, Y, rules="attnlrp").explain(X, Y, target=1) for m in (spelled, fused))
    torch.testing.assert_close(one.relevance["x"], other.relevance["x"], rtol=1e-10, atol=1e-12)
