"""Sums in a recurrence, W x + U h in front of a nonlinearity, have a role of their own, and rules that do not explode there."""

import pytest
import torch
from torch import nn

import lrp_fx

GAMMA = {"rule": "generalised-gamma", "gamma": 0.25, "epsilon": 1e-12}
RULES = {"base": "attnlrp", "rules": {"recurrent-sum": GAMMA}}
LAYER = {"GRU": 3, "LSTM": 4, "RNN": 1}  #: gates


def favoured(parts, gamma=0.25):
    """Shares of each addend in the relevance of their sum, by the definition of the generalised gamma rule."""
    z = sum(parts)
    own = [p + gamma * torch.where(z >= 0, p.clamp(min=0), p.clamp(max=0)) for p in parts]
    return [p / sum(own) for p in own]


def rnn_relevance(layer, x):
    """R of each input of a tanh RNN for the sum of its last state, step by step, without a gradient."""
    w, u, b = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0
    states = [torch.zeros(x.shape[0], w.shape[0], dtype=x.dtype)]
    for t in range(x.shape[1]):
        states.append(torch.tanh(x[:, t] @ w.T + states[-1] @ u.T + b))
    relevance, result = states[-1], []
    for t in reversed(range(x.shape[1])):
        new, old = x[:, t] @ w.T + layer.bias_ih_l0, states[t] @ u.T + layer.bias_hh_l0
        shares = favoured([new, old]) if t else [new / (new + old), old / (new + old)]  # h is a constant 0 at first
        of_new, of_old = (share * relevance for share in shares)
        result.append(((of_new / new)[:, :, None] * w * x[:, t, None]).sum((1, 2)))
        relevance = ((of_old / old)[:, :, None] * u * states[t][:, None]).sum(1)
    return torch.stack(result[::-1], 1)


def test_an_rnn_agrees_with_the_definition():
    torch.manual_seed(0)
    layer, x = nn.RNN(3, 5, batch_first=True).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    explained = lrp_fx.convert(layer, x).explain(x, rules=RULES, target=lambda out: out[0][:, -1].sum(-1))
    torch.testing.assert_close(explained.relevance["input"].sum(-1), rnn_relevance(layer, x), rtol=1e-9, atol=1e-12)
    assert explained.ledger.balance < 1e-12


class Cells(nn.Module):
    """A recurrent layer by its cell, step by step."""

    def __init__(self, layer):
        super().__init__()
        self.cell = {nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell, nn.RNN: nn.RNNCell}[type(layer)](3, 5).double()
        self.cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class Layer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Joined(nn.Module):
    """An RNN with one layer over input and state side by side."""

    def __init__(self, layer):
        super().__init__()
        self.joint = nn.Linear(8, 5).double()
        with torch.no_grad():
            self.joint.weight.copy_(torch.cat([layer.weight_ih_l0, layer.weight_hh_l0], 1))
            self.joint.bias.copy_(layer.bias_ih_l0 + layer.bias_hh_l0)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            h = torch.tanh(self.joint(torch.cat([x[:, t], h], -1)))
        return h


def decisions(model, x):
    """(operator, rule) of every node whose rule is that of recurrent sums."""
    xmodel = lrp_fx.convert(model, x, rules=RULES)
    plan = xmodel.current.under(xmodel.ruleset).plan
    return [(str(n.target), d) for n, d in plan.decisions.items() if d.rule.name == GAMMA["rule"]]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_sum_of_every_later_step_is_such_a_sum_however_it_is_called(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 5, batch_first=True).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    found = [decisions(model, x) for model in (Layer(layer), Cells(layer))]
    assert [len(f) for f in found] == [3, 3]  # gates are constants; an LSTM adds for all of them at once
    explained = [
        lrp_fx.convert(m, x).explain(x, target=1, rules=RULES).relevance["x"] for m in (Layer(layer), Cells(layer))
    ]
    torch.testing.assert_close(*explained, rtol=1e-9, atol=1e-12)


def test_a_layer_over_input_and_state_side_by_side_is_one():
    torch.manual_seed(0)
    layer, x = nn.RNN(3, 5, batch_first=True).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    found = decisions(Joined(layer), x)
    assert len(found) == 3 and all("linear" in target or "addmm" in target for target, _ in found)
    assert lrp_fx.convert(Joined(layer), x).explain(x, target=1, rules=RULES).ledger.balance < 1e-12


class Residual(nn.Module):
    """Layers that are shared among blocks, and residual sums: no recurrence feeds a nonlinearity here."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x):
        for _ in range(3):
            x = self.norm(x + self.outer(torch.tanh(self.inner(x))))
        return x


def test_other_sums_are_none():
    torch.manual_seed(0)
    x = torch.randn(2, 6, dtype=torch.float64)
    assert decisions(Residual().double(), x) == []
    siamese = lambda layer: lambda a: torch.tanh(layer(a[:, 0]) + layer(a[:, 1]))

    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a):
            return siamese(self.layer)(a)

    assert decisions(Siamese().double(), x.reshape(2, 2, 3)) == []


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_lowered_graphs_and_many_targets_agree(kind):
    torch.manual_seed(0)
    layer, x = Layer(kind(3, 5, batch_first=True).double()), torch.randn(2, 4, 3, dtype=torch.float64)
    xmodel = lrp_fx.convert(layer, x, rules=RULES)
    expected = xmodel.explain(x, target=2).relevance["x"]
    torch.testing.assert_close(xmodel.lower(x, target=2)(x).relevance["x"], expected, rtol=1e-9, atol=1e-12)
    several = xmodel.explain(x, targets=[1, 2]).relevance["x"]
    torch.testing.assert_close(several[1], expected, rtol=1e-9, atol=1e-12)


def test_an_addend_that_a_rule_stops_is_a_constant_of_the_ledger():
    torch.manual_seed(0)
    layer, x = Cells(nn.GRU(3, 5, batch_first=True).double()), torch.randn(2, 4, 3, dtype=torch.float64)
    rules = {**RULES, "overrides": {"op:aten.tanh": {"nonlinearity": "stop"}}}
    found = lrp_fx.convert(layer, x).explain(x, rules=rules, target=1)
    assert found.ledger.balance < 1e-12


def planted(kind):
    """Three letters, one-hot; unit 0 keeps the first, unit 1 the second, unit 2 weighs the first against the third.

    The answer is 7 times unit 1 (2.0) plus unit 2, where 8.4 of the first letter and -8.3 of the third nearly cancel.
    """
    layer = kind(3, 3, batch_first=True).double()
    gates, candidate = LAYER[kind.__name__], {nn.RNN: 0, nn.GRU: 2, nn.LSTM: 2}[kind]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        rows = slice(3 * candidate, 3 * candidate + 3)
        layer.weight_ih_l0[rows] = torch.tensor([[0.3, 0, 0], [0, 0.3, 0], [0, 0, -8.3]])
        layer.weight_hh_l0[rows] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [30.0, 0, 0]])
        for gate in range(gates):
            if gate != candidate:  # a GRU takes its candidate as it is; an LSTM forgets its cell and shows the new one
                opened = {nn.GRU: (30.0, -30.0), nn.LSTM: (30.0, -30.0, 0.0, 30.0)}[kind][gate]
                layer.bias_ih_l0[3 * gate : 3 * gate + 3] = opened
    return layer


class Answer(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = planted(kind)

    def forward(self, x):
        h = self.layer(x)[0][:, -1]
        return torch.stack([0 * h[:, 0], 7 * h[:, 1] + h[:, 2]], -1)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_relevance_is_on_the_letter_that_counts_where_states_nearly_cancel(kind):
    model, x = Answer(kind), torch.eye(3, dtype=torch.float64)[None]
    whole = model(x)[0, 1]
    without = torch.stack([whole - model(x * (torch.arange(3) != t)[None, :, None])[0, 1] for t in range(3)])
    assert without.argmax() == 1  # what the answer loses without each letter: the second counts most
    xmodel = lrp_fx.convert(model, x)
    old, new = (xmodel.explain(x, target=1, rules=r).relevance["x"][0].sum(-1) for r in ("attnlrp", RULES))
    assert old.argmax() == 0 and old[0] > 2 * whole
    assert new.argmax() == 1 and new.abs().sum() < old.abs().sum() / 2
