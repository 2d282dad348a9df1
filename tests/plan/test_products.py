"""Products that are multiplied with themselves, and long ones: every factor counts as often as it is multiplied."""

import time

import pytest
import torch
from models import few
from torch import fx, nn

import lrp_fx
from lrp_fx.analysis import analyse
from lrp_fx.analysis.attention import find_attention
from lrp_fx.analysis.products import Products, is_product
from lrp_fx.operators.table import OpTable
from lrp_fx.plan import make_plan

aten = torch.ops.aten


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b):
        return self.function(a, b)


def squared(t):
    return t * t


#: function -> how often each of a and b is a factor
PRODUCTS = {
    "a product squared": (lambda a, b: squared(a * b), 2, 2),
    "both orders": (lambda a, b: (a * b) * (b * a), 2, 2),
    "square": (lambda a, b: (a * b).square(), 2, 2),
    "cubed": (lambda a, b: (lambda t: t * t * t)(a * b), 3, 3),
    "with another factor": (lambda a, b: squared(a * b) * a, 3, 2),
    "squared twice": (lambda a, b: squared(squared(a * a * b)), 8, 4),
    "power of a product": (lambda a, b: (a * b).pow(3) * b, 3, 4),
    "cast and squared": (lambda a, b: squared((a * b).float()).double(), 2, 2),
    "one of the two cast": (lambda a, b: (lambda t: t.float().double() * t)(a * b), 2, 2),
    "negated": (lambda a, b: squared(-(a * b)), 2, 2),
    "a quotient squared": (lambda a, b: squared(a / b), 2, 2),
    "shared by two ways": (lambda a, b: (lambda t: (t * a) * (t * b))(a * b), 2, 2),
    "a product over its square": (lambda a, b: (lambda t: a / (t * t))(a * b), 3, 2),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_factor_has_its_share(name):
    function, of_a, of_b = PRODUCTS[name]
    torch.manual_seed(0)
    a, b = (torch.rand(2, 3, dtype=torch.float64) + 0.5 for _ in range(2))
    y = function(a, b)
    found = lrp_fx.convert(Function(function), a, b).explain(a, b, target=lambda out: out.sum())
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if "cast" in name else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found.relevance["a"], y * of_a / (of_a + of_b), **tolerance)
    torch.testing.assert_close(found.relevance["b"], y * of_b / (of_a + of_b), **tolerance)
    assert found.ledger.balance < 1e-6


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradient_is_that_of_autograd(name):
    function = PRODUCTS[name][0]
    a, b = (torch.rand(2, 3, dtype=torch.float64).add(0.5).requires_grad_() for _ in range(2))
    expected = torch.autograd.grad(function(a, b).sum(), (a, b))
    found = lrp_fx.convert(Function(function), a.detach(), b.detach(), rules="gradient").explain(
        a.detach(), b.detach(), target=lambda out: out.sum()
    )
    for x, g, key in zip((a, b), expected, ("a", "b"), strict=True):
        torch.testing.assert_close(found.relevance[key], (x * g).detach(), rtol=1e-6, atol=1e-7)


def test_a_gated_unit_squared():
    """relu(u) * v, squared: the gate rule gives all to v under signal-takes-all, and the sum is that of the output."""
    torch.manual_seed(0)
    u, v, x = nn.Linear(4, 6, bias=False).double(), nn.Linear(4, 6, bias=False).double(), torch.rand(2, 4).double()

    def model(x, y):
        return squared(torch.relu(u(x)) * v(y))

    both = lrp_fx.convert(Function(model), x, x.clone(), rules="cp_lrp").explain(x, x.clone(), target=lambda o: o.sum())
    assert (both.relevance["a"] == 0).all()
    torch.testing.assert_close(both.relevance["b"].sum(), model(x, x).sum().detach(), rtol=1e-9, atol=1e-12)


def chain(step, length):
    """A graph of ``length`` steps, as a capture would have it."""
    graph, value = fx.Graph(), torch.ones(1, 2)

    def call(target, *args):
        node = graph.call_function(target, args)
        node.meta["val"] = value
        return node

    x = graph.placeholder("x")
    x.meta["val"] = value
    y = x
    for index in range(length):
        y = step(call, x, y, index)
    graph.output((y,))
    graph.owning_module = nn.Module()
    return graph


def gate(call, x, i):
    return call(aten.sigmoid.default, call(aten.add.Tensor, x, i))


CHAINS = {
    "gates": lambda call, x, y, i: call(aten.mul.Tensor, y, gate(call, x, i)),
    "gates first": lambda call, x, y, i: call(aten.mul.Tensor, gate(call, x, i), y),
    "quotients": lambda call, x, y, i: call(aten.div.Tensor, x, y),
    "casts": lambda call, x, y, i: call(aten._to_copy.default, call(aten.mul.Tensor, y, x)),
    "functions": lambda call, x, y, i: call(aten.add.Tensor, call(aten.tanh.default, y), x),
    "literals": lambda call, x, y, i: call(aten.add.Tensor, y if i else call(aten.exp.default, y), 1),
    "powers": lambda call, x, y, i: call(aten.mul.Tensor, y, call(aten.sqrt.default, y)),
    "attention": lambda call, x, y, i: call(aten.add.Tensor, y, call(aten.softmax.int, y, -1)),
    "norms": lambda call, x, y, i: call(
        aten.div.Tensor, y, call(aten.sqrt.default, call(aten.mean.dim, call(aten.square.default, y), [-1], True))
    ),
}


@pytest.mark.parametrize("name", few(CHAINS, *list(CHAINS)[:3]))
def test_long_chains_take_time_that_grows_with_their_length(name):
    """Processor time of 1,600 steps against 400: 4 times as many, not 16 times; and no recursion."""

    def seconds(length):
        graph, ops = chain(CHAINS[name], length), OpTable.load()
        start = time.process_time()
        facts = analyse(graph, ops)
        find_attention(graph, facts)
        make_plan(graph, facts, lrp_fx.RuleSet.load("attnlrp"))
        return time.process_time() - start

    short, long = min(seconds(400) for _ in range(2)), min(seconds(1600) for _ in range(2))
    assert long < 9 * short


def test_two_to_the_thirtieth_factors_are_counted_not_listed():
    graph = chain(lambda call, x, y, i: call(aten.mul.Tensor, y, y), 30)
    facts = analyse(graph, OpTable.load())
    start = time.process_time()
    plan = make_plan(graph, facts, lrp_fx.RuleSet.load("attnlrp"))
    assert time.process_time() - start < 1
    assert all(set(decision.factors.values()) == {0.5} for decision in plan.decisions.values())
    products = Products(facts, {n: facts.operands[n] for n in facts.operands})
    for node in facts.specs:
        products.enter(node)
        product = products.flatten(node)
    assert is_product(facts, node)
    assert list(product.factors()) == [(next(iter(graph.nodes)), 2**30)]


SIGNS = {
    "a difference": (lambda a, b: torch.sigmoid(a) - torch.sigmoid(b), False),
    "a difference, scaled": (lambda a, b: torch.add(torch.sigmoid(a), torch.sigmoid(b), alpha=-0.5), False),
    "a sum with a negative": (lambda a, b: torch.sigmoid(a) + -torch.sigmoid(b), False),
    "a sum with a negative multiple": (lambda a, b: torch.exp(a) + torch.exp(b) * -2, False),
    "a difference of functions without a bound": (lambda a, b: nn.functional.softplus(a) - 0.5 * torch.exp(b), False),
    "a constant taken away": (lambda a, b: 2 * torch.sigmoid(a) - 1 + 0 * b, False),
    "a sum": (lambda a, b: torch.sigmoid(a) + torch.exp(b), True),
    "a counterpart": (lambda a, b: (1 - torch.sigmoid(a)) * torch.exp(b), True),
    "a negative": (lambda a, b: -torch.exp(a + b), True),
    "minus a difference from a negative": (lambda a, b: torch.sigmoid(a) - -torch.sigmoid(b), True),
}


@pytest.mark.parametrize("name", SIGNS)
def test_only_what_has_one_sign_is_a_gate(name):
    function, gate = SIGNS[name]

    class Gated(nn.Module):
        def forward(self, a, b, v):
            return function(a, b) * v

    a, b, v = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    found = lrp_fx.convert(Gated(), a, b, v, rules="cp_lrp").explain(a, b, v, target=lambda out: out.sum())
    y = function(a, b) * v
    half = (y.sum() - (v.sum() if name == "a constant taken away" else 0)) / 2  # of y = v (c + s), v gets c + s/2
    torch.testing.assert_close(found.relevance["v"].sum(), y.sum() if gate else half, rtol=1e-9, atol=1e-12)


NORMS = {
    "layer": lambda x, b: nn.functional.layer_norm(x, (4,), None, b),
    "layer over two": lambda x, b: nn.functional.layer_norm(x, (6, 4), None, b.expand(6, 4)),
    "instance": lambda x, b: nn.functional.instance_norm(x.transpose(1, 2), None, None, None, b).transpose(1, 2),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_bias_of_a_normalization_that_carries_relevance(name):
    class Normed(nn.Module):
        def forward(self, x, b):
            return NORMS[name](x, b)

    torch.manual_seed(0)
    x, b, c = torch.randn(2, 6, 4).double(), torch.randn(4).double(), torch.randn(2, 6, 4).double()
    found = lrp_fx.convert(Normed(), x, b).explain(x, b, target=lambda out: (out * c).sum())
    torch.testing.assert_close(found.relevance["b"].sum(), (b * c).sum(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.relevance["x"].sum(), ((NORMS[name](x, b) - b) * c).sum(), rtol=1e-9, atol=1e-12)
