"""One step of a recurrence is captured and runs as often as the input says: relevance is that of all steps written out."""

import random

import pytest
import torch
from models import few
from torch import nn

import lrp_fx
from lrp_fx.graph.loop import Loop
from lrp_fx.graph.steps import SHOWN
from lrp_fx.rules.ruleset import available

KINDS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Layer(nn.Module):
    """A recurrent layer and a head, which reads the sum of all outputs, or a last state."""

    def __init__(self, kind=nn.GRU, read="outputs", **options):
        super().__init__()
        torch.manual_seed(0)
        self.core, self.read = kind(4, 5, **{"batch_first": True, **options}), read
        self.head = nn.LazyLinear(3)

    def forward(self, x, state=None):
        y, last = self.core(x, state)
        if self.read == "outputs":
            time = 1 if self.core.batch_first and x.dim() == 3 else 0
            y = y.sum(time) + y.select(time, -1)
        else:
            y = (last[1] if self.read == "cell" else last[0] if isinstance(last, tuple) else last)[-1]
        return self.head(y)


class Cells(nn.Module):
    """The same layer by its cell, step by step in Python."""

    def __init__(self, layer):
        super().__init__()
        self.cell, self.head = CELLS[type(layer.core)](4, 5), layer.head
        self.cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.core.state_dict().items()})

    def forward(self, x):
        state, outputs = None, []
        for row in x.unbind(1):
            state = self.cell(row, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs, 1).sum(1) + outputs[-1])


def made(*args, **options):
    model = Layer(*args, **options).double().eval()
    with torch.no_grad():
        model(given(3) if options.get("batch_first", True) else given(3).transpose(0, 1))
    return model


def given(length, batch=2):
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, 4, dtype=torch.float64, generator=generator)


def agree(model, *inputs, rules="default", xmodel=None, other=None):
    """Hold an explanation to that of the model with every step written out; returns the converted model."""
    xmodel = xmodel or lrp_fx.convert(model, rules=rules)
    target = 1 if model(*inputs).dim() > 1 else lambda y: y[None, 1]
    loops = xmodel.explain(*inputs, target=target, rules=rules)
    expected = lrp_fx.convert(other or model, rules=rules, dynamic=False).explain(*inputs, target=target)
    torch.testing.assert_close(xmodel(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)
    for name, relevance in expected.relevance.items():
        torch.testing.assert_close(loops.relevance[name], relevance, **CLOSE)
    for category in {*loops.ledger, *expected.ledger}:
        assert loops.ledger[category] == pytest.approx(expected.ledger[category], rel=1e-9, abs=1e-11), category
    assert loops.ledger.balance < 1e-12
    return xmodel


def loops_of(xmodel):
    return [n.target for n in xmodel.graph_module.graph.nodes if isinstance(n.target, Loop)]


@pytest.mark.parametrize("kind", few(KINDS, nn.GRU))
def test_other_lengths_need_no_capture(kind):
    model = made(kind)
    xmodel = agree(model, given(9))
    for length in (SHOWN, 23):
        agree(model, given(length), xmodel=xmodel)
    assert len(xmodel.captures) == 1 and len(loops_of(xmodel)) == 1
    for length in (SHOWN - 1, 1):  # short ones are written out
        agree(model, given(length), xmodel=xmodel)


@pytest.mark.parametrize("kind", few(KINDS, nn.LSTM))
@pytest.mark.parametrize("rules", available())
def test_every_rule_set(kind, rules):
    xmodel = agree(made(kind), given(6), rules=rules)
    assert len(loops_of(xmodel)) == 1
    assert xmodel.verify(given(7)).failures == ()


FORMS = {
    "last state": {"read": "state"},
    "last cell": {"kind": nn.LSTM, "read": "cell"},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "projected": {"kind": nn.LSTM, "proj_size": 3, "num_layers": 2},
    "time first": {"batch_first": False},
    "without bias": {"bias": False},
    "relu": {"kind": nn.RNN, "nonlinearity": "relu"},
}


@pytest.mark.parametrize("form", few(FORMS, "projected", "last state"))
def test_every_form(form):
    model = made(**FORMS[form])
    turned = (lambda x: x) if model.core.batch_first else (lambda x: x.transpose(0, 1))
    xmodel = agree(model, turned(given(6)))
    agree(model, turned(given(8)), xmodel=xmodel)
    assert len(xmodel.captures) == 1 and loops_of(xmodel)


def test_random_layers(drawn):
    """Recurrent models that are drawn, under rules that are drawn, against every step written out in float64."""
    draw = random.Random(drawn)
    kind, layers = draw.choice(KINDS), draw.choice([1, 1, 2])
    options = {"num_layers": layers, "bidirectional": draw.random() < 0.4, "bias": draw.random() < 0.7}
    if kind is nn.LSTM and draw.random() < 0.4:
        options["proj_size"] = 3
    if kind is nn.RNN:
        options["nonlinearity"] = draw.choice(["tanh", "relu"])
    model = made(kind, draw.choice(["outputs", "state"]), **options)
    xmodel = lrp_fx.convert(model, given(draw.randint(SHOWN, 9), draw.randint(2, 3)))
    agree(model, given(draw.randint(SHOWN, 9), draw.randint(1, 3)), rules=draw.choice(available()), xmodel=xmodel)


def test_without_a_batch():
    model = made()
    xmodel = agree(model, given(6)[0])
    agree(model, given(8)[0], xmodel=xmodel)
    assert len(xmodel.captures) == 1 and loops_of(xmodel)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_first_state_that_is_an_input_has_relevance(batch):
    state = torch.randn(1, batch, 5, dtype=torch.float64)
    xmodel = agree(made(), given(6, batch), state)
    assert xmodel.explain(given(7, batch), state, target=0).relevance["state"].abs().sum() > 0
    assert len(xmodel.captures) == 1


@pytest.mark.parametrize("kind", few(KINDS, nn.GRU))
def test_a_cell_in_a_loop_of_python_is_the_same(kind):
    model = made(kind)
    agree(model, given(6), other=Cells(model).double().eval())


@pytest.mark.slow
def test_what_is_asked_of_a_loop():
    """Latents by step, conditions, many targets, little memory, and a lowered graph."""
    model, x = made(nn.LSTM), given(9)
    xmodel = lrp_fx.convert(model, given(6))
    expected = xmodel.explain(x, target=2, at="core")
    assert expected.latents["core"].shape == (2, 9, 5)
    unit = [xmodel.explain(x, target=2, condition={"core": i}).relevance["x"] for i in range(5)]
    torch.testing.assert_close(sum(unit), expected.relevance["x"], **CLOSE)
    several = xmodel.explain(x, targets=[0, 2]).relevance["x"]
    torch.testing.assert_close(several[1], expected.relevance["x"], **CLOSE)
    assert not xmodel.current.many  # few targets need no graph with all steps written out
    batched = xmodel.explain(x, targets=[0, 1, 2] * 11).relevance["x"]
    torch.testing.assert_close(batched[2], expected.relevance["x"], **CLOSE)
    low = xmodel.explain(x, target=2, memory="low").relevance["x"]
    torch.testing.assert_close(low, expected.relevance["x"], **CLOSE)
    lowered = xmodel.lower(x, target=2)
    torch.testing.assert_close(lowered(x).relevance["x"], expected.relevance["x"], **CLOSE)
    assert len(xmodel.captures) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision(dtype):
    model, x = made(), given(6)
    expected = lrp_fx.convert(model, x).explain(x, target=1).relevance["x"]
    found = lrp_fx.convert(model.to(dtype), x.to(dtype)).explain(x.to(dtype), target=1)
    assert found.relevance["x"].dtype is dtype
    apart = (found.relevance["x"].double() - expected).abs().max() / expected.abs().max()
    assert apart < (1e-4 if dtype is torch.float32 else 0.1)


def test_steps_that_rules_tell_apart_are_an_error(monkeypatch):
    """A loop runs one graph for all steps in the middle: that they are alike is looked at."""
    monkeypatch.setattr("lrp_fx.rewrite.roll._same", lambda *_: False)
    model, x = made(), given(6)
    with pytest.raises(lrp_fx.errors.CaptureError, match=r"differ from one another: .*'core'(.|\n)*dynamic=False"):
        lrp_fx.convert(model, x).explain(x, target=1)
    assert lrp_fx.convert(model, x, dynamic=False).explain(x, target=1).ledger.balance < 1e-12
