"""Loops over time that a model runs in Python are captured once, for any number of steps."""

import pytest
import torch
from torch import fx, nn

import lrp_fx
from lrp_fx.capture.as_run import TURNS
from lrp_fx.capture.loops.find import find_loop
from lrp_fx.capture.loops.tidy import tidy
from lrp_fx.capture.size_one import unproven
from lrp_fx.graph.loop import CapturedLoop, Loop
from lrp_fx.graph.steps import SHOWN

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
LONG = TURNS + 1  #: steps from which on a loop is seen


def given(length, batch=2):
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, 4, dtype=torch.float64, generator=generator)


class Cell(nn.Module):
    """A cell in a loop; the head reads the mean of all states and the last one."""

    def __init__(self, kind=nn.GRUCell):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = kind(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        state, outputs = None, []
        for row in x.unbind(1):
            state = self.cell(row, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs, 1).mean(1) + outputs[-1])


class Written(nn.Module):
    """A gated sum that is written row by row, as a scan of a state space model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.value, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        gate, value = torch.sigmoid(self.gate(x)), self.value(x)
        result, state = torch.zeros_like(value), torch.zeros_like(value[:, 0])
        for t in range(x.shape[1]):
            state = gate[:, t] * state + value[:, t]
            result[:, t] = torch.tanh(state)
        return self.head(result.sum(1))


class Backwards(Written):
    """From the last step to the first, with the results put together by ``cat``."""

    def forward(self, x):
        gate, value = torch.sigmoid(self.gate(x)), self.value(x)
        state, results = torch.zeros_like(value[:, 0]), []
        for t in range(x.shape[1] - 1, -1, -1):
            state = gate[:, t] * state + value[:, t]
            results.append(torch.tanh(state).unsqueeze(1))
        return self.head(torch.cat(results[::-1], 1).sum(1))


class Scan(Written):
    """A state space model: what is read out of a state is a column of a product with one column."""

    def forward(self, x):
        gate, value = torch.sigmoid(self.gate(x)).unsqueeze(-1), self.value(x).unsqueeze(-1)
        state, results = torch.zeros_like(value[:, 0] * x[:, :1]), []
        for t in range(x.shape[1]):
            state = gate[:, t] * state + value[:, t] * x[:, t, None]
            results.append((state @ x[:, t].unsqueeze(-1))[:, :, 0])
        return self.head(torch.stack(results, -1).sum(-1))


class Blocks(Written):
    """The gate is a product of blocks, whose shape function expands the bias to symbolic sizes."""

    def forward(self, x):
        rows = x.reshape(-1, 2, 2).transpose(0, 1)
        gate = torch.baddbmm(
            self.gate.bias[:2, None, None], rows, self.gate.weight[:4].reshape(2, 4, 2).transpose(1, 2)
        )
        gate = torch.sigmoid(gate.transpose(0, 1).reshape(*x.shape[:2], 8))
        state, results = torch.zeros_like(gate[:, 0]), []
        for t in range(x.shape[1]):
            state = gate[:, t] * state + x[:, t].repeat(1, 2)
            results.append(torch.tanh(state))
        return self.head(torch.stack(results, 1).sum(1)[:, :5])


class Limited(Written):
    """Has another way for long inputs, which no short one shows."""

    def forward(self, x):
        y = super().forward(x)
        return y * 2 if x.shape[1] > LONG + 4 else y


MODELS = {
    "cell": Cell,
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "written": Written,
    "backwards": Backwards,
    "scan": Scan,
    "blocks": Blocks,
}


@pytest.fixture(scope="module", params=MODELS)
def rolled(request):
    return lrp_fx.convert(MODELS[request.param]().double().eval(), given(LONG))


def agree(xmodel, x, rules="default", **options):
    """Hold an explanation to that of the model with every step written out."""
    model = xmodel.model
    found = xmodel.explain(x, target=1, rules=rules, **options)
    expected = lrp_fx.convert(model, rules=rules, dynamic=False).explain(x, target=1)
    torch.testing.assert_close(xmodel(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], **CLOSE)
    for category in {*found.ledger, *expected.ledger}:
        assert found.ledger[category] == pytest.approx(expected.ledger[category], rel=1e-9, abs=1e-11), category
    assert found.ledger.balance < 1e-12


class Layers(nn.Module):
    """Layers with a loop each, which fixes the length while the first one runs."""

    def __init__(self, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(Layer(number) for number in range(layers))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        torch.manual_seed(number)
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x):
        state, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state)
        return torch.stack(outputs, 1)


def test_layers_with_loops_are_traced_once(monkeypatch):
    exports, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: exports.append(1) or export(*args, **kwargs))
    xmodel = lrp_fx.convert(Layers().double().eval(), given(LONG))
    assert len(exports) == 3  # the one that sees the loop, and one for each of two short lengths
    assert len(loops_of(xmodel)) == 4
    agree(xmodel, given(5))


def loops_of(xmodel):
    return [n.target for n in xmodel.graph_module.graph.nodes if isinstance(n.target, Loop)]


def test_other_lengths_need_no_capture(rolled):
    for length in (SHOWN, 9):
        agree(rolled, given(length))
    agree(rolled, given(7, batch=1), memory="low")
    assert len(rolled.captures) == 1 and len(loops_of(rolled)) == 1


@pytest.mark.slow
def test_a_length_at_which_the_model_takes_another_way_is_captured_anew():
    model = Limited().double().eval()
    xmodel = lrp_fx.convert(model, given(LONG))
    assert loops_of(xmodel)
    long = given(LONG + 6)
    torch.testing.assert_close(xmodel(long), model(long), rtol=1e-12, atol=1e-12)
    assert "differs at this length" in str(xmodel.captures()[-1])


@pytest.mark.parametrize(
    "steps",
    [
        lambda x: [x[:, 0].exp(), x[:, 1].sin(), x[:, 2].exp(), x[:, 3].exp(), x[:, 4]],
        lambda x: [x[:, t] * (t + 1.5) for t in range(5)],
    ],
    ids=["other operators", "other numbers"],
)
def test_rows_that_are_read_in_turn_are_no_loop_by_themselves(steps):
    class Model(nn.Module):
        def forward(self, x):
            return torch.stack(steps(x)).sum(0)

    program = torch.export.export(Model(), (torch.randn(2, 5, 3),))
    graph = program.module().graph
    tidy(graph)
    assert find_loop(graph) is None


def test_the_output_of_a_module_in_a_loop_is_a_latent_of_all_steps(rolled):
    if not isinstance(rolled.model, Cell):
        with pytest.raises(lrp_fx.errors.LatentError):
            rolled.explain(given(9), target=1, at="cell")
        return
    latent = rolled.explain(given(9), target=1, at="cell").latents["cell"]
    assert latent.shape == (2, 9, 5) and latent.abs().sum() > 0


@pytest.mark.parametrize(("kind", "steps"), [("keeps", 1), ("grows", 1 + 50), ("unread", 1)])
def test_sizes_of_all_steps_are_told_from_one(kind, steps):
    rows = []

    def keeps(row, state):
        rows.append(row)
        return torch.tanh(state) + row.sum(0, keepdim=True)

    def grows(row, state):
        rows.append(row)
        return torch.tanh(state + row)

    def unread(row):  # the first state has a form of its own, which no step reads
        rows.append(row)
        return torch.tanh(row)

    body = fx.Graph()
    operands = [body.placeholder(name) for name in ("row", "state")]
    step = {"keeps": keeps, "grows": grows, "unread": unread}[kind]
    body.output((body.call_function(step, tuple(operands[: 1 if kind == "unread" else 2])),))
    graph = fx.Graph()
    x, state = graph.placeholder("x"), graph.placeholder("state")
    loop = CapturedLoop(fx.GraphModule({}, body), 1)
    end = graph.call_function(loop, (), {"x": [x], "state": [state], "constants": [], "sizes": None})
    samples = 1 if kind == "keeps" else 2
    end.meta["val"] = [torch.empty(50, samples, 3), torch.empty(samples, 3)]
    graph.output(end)
    leaves = [torch.zeros(50, 2, 3), torch.zeros(1, 3)]
    assert unproven(fx.GraphModule({}, graph), leaves, {}) is None
    assert len(rows) == steps
    assert "has a size of 49" in str(unproven(fx.GraphModule({}, graph), [leaves[0][1:], leaves[1]], {}))
