"""Signs: what is not negative is known, what may be is not claimed; rules on parts leave out runs on what is not there."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.analysis import analyse
from lrp_fx.capture import capture
from lrp_fx.operators.table import OpTable
from lrp_fx.rules.functions import favour_sign, share_relevance

#: function of (x, y) -> whether its result has no negative entry
FUNCTIONS = {
    "relu": (lambda x, y: F.relu(x), True),
    "relu6": (lambda x, y: F.relu6(x), True),
    "sigmoid": (lambda x, y: torch.sigmoid(x), True),
    "softmax": (lambda x, y: torch.softmax(x, -1), True),
    "exponential": (lambda x, y: torch.exp(x), True),
    "clamped from below": (lambda x, y: x.clamp(min=0.5), True),
    "moved": (lambda x, y: F.relu(x).transpose(-1, -2).flatten(1), True),
    "added": (lambda x, y: F.relu(x) + 2 * torch.sigmoid(y) + 1, True),
    "averaged": (lambda x, y: F.relu(x).mean(-1), True),
    "pooled": (lambda x, y: F.max_pool1d(F.relu(x), 2), True),
    "multiplied": (lambda x, y: F.relu(x) * torch.sigmoid(y), True),
    "padded with zeros": (lambda x, y: F.pad(F.relu(x), (1, 1)), True),
    "the input": (lambda x, y: x, False),
    "tanh": (lambda x, y: torch.tanh(x), False),
    "log-softmax": (lambda x, y: torch.log_softmax(x, -1), False),
    "clamped from above": (lambda x, y: x.clamp(max=0.5), False),
    "clamped below zero": (lambda x, y: x.clamp(min=-0.5), False),
    "a difference": (lambda x, y: F.relu(x) - F.relu(y), False),
    "less a number": (lambda x, y: F.relu(x) - 1, False),
    "plus a negative number": (lambda x, y: F.relu(x) + -1, False),
    "added times a negative number": (lambda x, y: torch.add(F.relu(x), F.relu(y), alpha=-1), False),
    "one part of any sign": (lambda x, y: torch.cat([F.relu(x), y], -1), False),
    "times a negative number": (lambda x, y: F.relu(x) * -2, False),
    "padded with a negative number": (lambda x, y: F.pad(F.relu(x), (1, 1), value=-1.0), False),
    "multiplied by a signal": (lambda x, y: F.relu(x) * y, False),
}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_has_no_negative_entry_is_known(name):
    function, expected = FUNCTIONS[name]
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    graph = capture(Of(function), (x, y), {}).graph_module.graph
    facts = analyse(graph, OpTable.load())
    (result,) = graph.output_node().all_input_nodes
    assert (result in facts.nonnegative) == expected
    assert not expected or bool((function(x, y) >= 0).all())


@pytest.mark.parametrize("rule", ["z-plus", "alpha-beta"])
def test_runs_on_a_part_that_is_not_there_are_left_out(rule, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten()).double()
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    rules = {"base": "attnlrp", "rules": {"convolution": rule}}

    def explained():
        xmodel = lrp_fx.convert(model, x, rules=rules)
        runs = [n.target for n in xmodel.graph_module.graph.nodes].count(torch.ops.aten.conv1d.default)
        return xmodel.explain(x, target=1), runs

    found, runs = explained()
    monkeypatch.setattr("lrp_fx.rewrite.emit._is_nonnegative", lambda site, layer: False)
    expected, all_runs = explained()
    assert runs < all_runs
    torch.testing.assert_close(found.relevance["input"], expected.relevance["input"], rtol=1e-12, atol=1e-14)
    assert found.ledger.balance < 1e-12


#: function of x -> whether it is 0 wherever x is negative
RECTIFIERS = {
    "relu": (F.relu, True),
    "relu6": (F.relu6, True),
    "hardtanh from zero": (lambda x: F.hardtanh(x, 0.0, 1.0), True),
    "clamped at zero": (lambda x: x.clamp(min=0), True),
    "clamped below zero": (lambda x: x.clamp(min=-0.5), False),
    "clamped above zero": (lambda x: x.clamp(min=0.5), False),
    "absolute value": (torch.abs, False),
    "sigmoid": (torch.sigmoid, False),
    "hard swish": (F.hardswish, False),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_what_is_zero_for_negative_numbers_is_known(name):
    function, expected = RECTIFIERS[name]
    x = torch.randn(2, 3)
    graph = capture(Of(lambda x, y: function(x)), (x, x), {}).graph_module.graph
    (result,) = graph.output_node().all_input_nodes
    assert (result in analyse(graph, OpTable.load()).rectifiers) == expected
    assert not expected or not function(-x.abs()).any()


class Between(nn.Module):
    """A convolution with a batch norm behind a ReLU; ``end`` reads its output."""

    def __init__(self, end, norm=True):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=2)
        self.norm, self.end, self.head = nn.BatchNorm1d(4) if norm else nn.Identity(), end, nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.end(self.norm(self.second(F.relu6(self.first(x))))).flatten(1))


GAMMA = {"convolution": {"rule": "generalised-gamma", "gamma": 1.0}}


def between(end, further=None, norm=True):
    torch.manual_seed(0)
    model = Between(end, norm).double().eval()
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data += 0.2 * torch.rand_like(tensor)
    rules = {"base": "attnlrp", "rules": GAMMA | (further or {})}
    x = 3 * torch.randn(3, 2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules=rules)
    targets = [n.target for n in xmodel.graph_module.graph.nodes]
    return xmodel.explain(x, target=1, at=["second"]), targets.count(share_relevance), targets.count(favour_sign)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("end", [F.relu, F.relu6], ids=["relu", "relu6"])
def test_a_layer_between_relus_hands_back_relevance_in_one_run(end, norm, monkeypatch):
    found, one_run, two_runs = between(end, norm=norm)
    assert (one_run, two_runs) == (1, 1)  # the first convolution has inputs of both signs
    planning = importlib.import_module("lrp_fx.plan.make_plan")  # as an attribute, the function of this name
    monkeypatch.setattr(planning, "_rectifies", lambda plan, node: False)
    expected, *runs = between(end, norm=norm)
    assert runs == [0, 2]
    torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.latents["second"], expected.latents["second"], rtol=1e-12, atol=1e-14)
    assert found.ledger.balance < 1e-12 and bool(found.relevance["x"].any())
    for category in ("bias", "stabiliser"):
        assert found.ledger[category] == pytest.approx(expected.ledger[category], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("end", "further"),
    [
        (torch.tanh, None),
        (lambda y: y.relu() + 0.1 * y, None),  # another reader
        (lambda y: y.clamp(min=-0.1), None),
        (F.relu, {"nonlinearity": "deconvnet"}),  # relevance of negative outputs passes
    ],
    ids=["tanh", "another reader", "a bound below zero", "deconvnet"],
)
def test_a_layer_whose_negative_outputs_may_have_relevance_keeps_both_runs(end, further):
    found, one_run, two_runs = between(end, further)
    assert (one_run, two_runs) == (0, 2)
    assert found.ledger.balance < 1e-12
