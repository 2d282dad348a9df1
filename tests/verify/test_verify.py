"""verify fails on every fault it is there for, names the node, and passes on what is sound."""

import copy

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx
from lrp_fx.operators.table import OpTable
from lrp_fx.rules import functions as rule_ops

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, function=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.function, self.scale = nn.Linear(4, 6), nn.Linear(6, 3), function, 1.0
        self.register_buffer("weight", torch.ones(6))

    def forward(self, x):
        return self.two(self.function(self.one(x)) * self.weight) * self.scale


def net(function=torch.tanh):
    return Net(function).double().eval()


def failures(xmodel, *args, **kwargs):
    found = xmodel.verify(*args, **kwargs)
    assert found.passed == (not found.failures)
    return "\n".join(found.failures)


def test_it_returns_a_value_and_prints_when_asked(capsys):
    xmodel = lrp_fx.convert(net())
    found = xmodel.verify(X)
    assert found.passed and capsys.readouterr().out == ""
    assert "verify: passed" in str(found) and "bit-equal" in str(found)
    xmodel.verify(X, show=True)
    assert "verify: passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", few(["llama2", "bert", "vit", "mixtral", "flan-t5", "resnet"], "llama2"))
@pytest.mark.parametrize("rules", ["attnlrp", "gradient"])
def test_what_is_sound_passes_and_its_gradient_is_that_of_autograd(name, rules):
    model, inputs = build(name)
    found = lrp_fx.convert(model, rules=rules).verify(**inputs)
    assert found.passed, found.failures
    assert found.gradient_difference is not None and found.gradient_difference < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_sound_passes_in_lower_precision(dtype):
    model, inputs = build("vit")
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    found = lrp_fx.convert(model.to(dtype)).verify(**inputs)
    assert found.passed, found.failures


def _graph_stays(model, change):
    """A conversion whose captured graph is that of the model before ``change``."""
    before = copy.deepcopy(model)
    xmodel = lrp_fx.convert(before, X)
    change(model)
    xmodel._model = (model,)
    specialization = xmodel.current
    xmodel.specialization = lambda args, kwargs: (specialization, lrp_fx.capture.read_call(model, args, kwargs))
    return xmodel


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: setattr(m, "two", nn.Linear(6, 3).double()), "'two'"),
        (lambda m: m.one.weight.data.mul_(2), "'one'"),
        (lambda m: setattr(m, "scale", 3.0), "differ"),
        (lambda m: m.weight.fill_(5), "differ"),
        (lambda m: m.one.register_forward_hook(lambda mod, i, o: o * 2), "'one'"),
    ],
)
def test_outputs_that_are_not_the_models_fail(change, named):
    model = net()
    text = failures(_graph_stays(model, change), X)
    assert "outputs differ by" in text and "between the captured graph and the model" in text and named in text


def test_a_rule_that_changes_outputs_is_named(monkeypatch):
    monkeypatch.setattr(rule_ops._Identity, "forward", staticmethod(lambda y, x, slope: 1.001 * y))
    text = failures(lrp_fx.convert(net()), X)
    assert "a rule changed the value of" in text and "aten.tanh" in text


#: declaration that is wrong -> (function, declaration, what a failure has to name)
DECLARED = {
    "a sum that loses an operand": (
        lambda h: h + torch.tanh(h), {"linear": {"aten.add": {"args": "self", "elementwise": True}}}, "aten.add",
    ),
    "an activation as movement": (torch.tanh, {"movement": {"aten.tanh": "self"}}, "aten.tanh"),
    "an activation as constant": (
        lambda h: h + torch.tanh(h), {"constant": {"ops": ["aten.tanh"]}}, "input times gradient",
    ),
    "a product that loses a factor": (
        lambda h: h * h.flip(-1), {"product": {"aten.mul": {"args": "self", "elementwise": True}}}, "aten.mul",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_that_does_not_hold_is_named(name):
    function, ops, named = DECLARED[name]
    text = failures(lrp_fx.convert(net(function), ops=ops), X, target=1)
    assert named in text


def test_gradient_rules_that_are_not_the_gradient_fail(monkeypatch):
    """Relevance that is lost by a backward which the ledger shares."""
    table = OpTable.load()
    assert table.specs["aten.relu"].kind == "homogeneous"
    xmodel = lrp_fx.convert(net(torch.relu))
    assert xmodel.verify(X).passed
    monkeypatch.setattr(rule_ops, "source", lambda x: x)
    monkeypatch.setattr("lrp_fx.explain.accounts.source", lambda x: 2 * x.detach().requires_grad_())
    assert not xmodel.verify(X).passed


def test_a_rule_that_is_a_little_off_fails(monkeypatch):
    """By less than the first check of an explanation allows, and more than rounding makes."""
    slope = rule_ops.closed_slope
    xmodel = lrp_fx.convert(net(torch.nn.functional.silu))
    assert xmodel.verify(X, target=1).passed
    monkeypatch.setattr(rule_ops, "closed_slope", lambda formula, x: (1 + 1e-7) * slope(formula, x))
    assert "aten.silu" in failures(xmodel, X, target=1)


def test_relevance_that_is_not_finite_fails_and_names_the_rule():
    """A rule of the user's own divides by an output that is 0."""
    lrp_fx.register_rule("over the output", base="epsilon", backward=lambda g, y: g / y)
    model = net(torch.tanh)
    with torch.no_grad():
        model.one.weight[1], model.one.bias[1] = 0, 0
    rules = {"base": "attnlrp", "overrides": {"one": {"linear": "over the output"}}}
    found = lrp_fx.convert(model, rules=rules).verify(X, target=1)
    assert not found.finite and not found.passed
    assert any("relevance is not finite, first at" in line and "'one'" in line for line in found.failures)
    assert lrp_fx.convert(model).verify(X, target=1).finite


def test_a_conserving_rule_set_has_no_rule_entries():
    """Registered as conserving, it is not: the gradient of a product of two."""
    rules = lrp_fx.RuleSet.load(
        {"name": "claims", "base": "attnlrp", "conserves": True, "rules": {"bilinear": "gradient"}}
    )
    model = net(lambda h: h * h.flip(-1))
    text = failures(lrp_fx.convert(model, rules=rules), X, target=1)
    assert "claims conserves, but" in text and "aten.mul" in text
    assert lrp_fx.convert(model, rules="attnlrp").verify(X, target=1).passed


def test_a_graph_that_does_not_follow_the_model_is_found():
    """Its outputs are the model's on these very inputs, and on no others: it holds a computed value as a constant."""
    model = net()
    constant = model.one(X).detach()

    def change(changed):
        changed.function = lambda h: torch.tanh(2 * h - constant)

    text = failures(_graph_stays(model, change), X)
    assert "does not follow the model when input 'x' changes" in text and "outputs differ" not in text


def test_a_float_input_that_changes_the_output_and_has_no_gradient_fails():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x, y):
            return self.one(x) + torch.tanh(self.two(y))

    model, y = Two().double(), X.flip(0)
    assert lrp_fx.convert(model).verify(X, y).passed
    text = failures(lrp_fx.convert(model, ops={"constant": {"ops": ["aten.tanh"]}}), X, y)
    assert "input 'y' changes the explained value" in text and "linear_1" in text


def test_random_draws_are_said_and_leave_no_trace():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x + torch.randn_like(x))

    xmodel = lrp_fx.convert(Noisy().double(), X)
    state = torch.get_rng_state()
    found = xmodel.verify(X)
    assert found.passed and "random" in "\n".join(found.notes)
    assert torch.equal(state, torch.get_rng_state())
    assert not lrp_fx.convert(nn.Sequential(nn.Dropout(), nn.Linear(4, 3)).double()).verify(X).notes


def test_what_a_model_detaches_is_a_note():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.layer(x) * (1 + x[:, :1].detach().exp())

    honoured = lrp_fx.convert(Stops().double()).verify(X, target=1)
    assert honoured.passed and honoured.gradient_difference < 1e-9 and not honoured.notes
    found = lrp_fx.convert(Stops().double(), detach="see-through").verify(X, target=1)
    assert found.passed and found.gradient_difference < 1e-9
    assert any("gradient at 'x' differs from that of its captured operators" in note for note in found.notes)


def test_a_model_that_cannot_be_differentiated_is_a_note():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3)

        @torch.no_grad()
        def forward(self, x):
            return self.layer(x)

    found = lrp_fx.convert(Still().double()).verify(X)
    assert found.passed and "cannot be differentiated" in "\n".join(found.notes)


def test_it_leaves_the_model_as_it_was():
    model = net().train()
    model.one.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = X.clone()
    lrp_fx.convert(model).verify(x)
    assert model.training and model.one.weight.requires_grad is False and model.two.weight.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(x, X) and not x.requires_grad
    assert not torch.nn.modules.module._global_forward_hooks
