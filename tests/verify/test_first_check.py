"""The first explanation of every capture and rule set is held to an accounting sweep: what is broken is named."""

import contextlib
import math

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx
from lrp_fx.errors import LrpError, NumericalError, TargetError
from lrp_fx.explain import sweep
from lrp_fx.explain import sweeper as explaining
from lrp_fx.rules import functions as rule_ops
from lrp_fx.rules import slopes


def _op(name, function, backward=None):
    op = torch.library.custom_op(f"firstcheck::{name}", function, mutates_args=(), schema="(Tensor x) -> Tensor")
    op.register_fake(lambda x: torch.empty_like(x))
    if backward is not None:
        op.register_autograd(backward)
    return op


_op("underived", lambda x: 2 * x)
_op("silent", lambda x: 2 * x, lambda ctx, g: torch.zeros_like(g))
_op("nothing", lambda x: 2 * x, lambda ctx, g: None)
_op("failing", lambda x: 2 * x, lambda ctx, g: g.reshape(-1, 10_007))
_op("integral", lambda x: x.detach().clone(), lambda ctx, g: g * 3)


class Net(nn.Module):
    """An embedding of a function between two layers."""

    def __init__(self, function, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.function = nn.Linear(4, 6, bias), nn.Linear(6, 3, bias), function

    def forward(self, x):
        return self.two(self.function(self.one(x)))


def net(function, bias=True):
    return Net(function, bias).double().eval()


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

#: declaration that is wrong -> (function, declaration, what the error has to name)
DECLARED = {
    "no derivative": (torch.ops.firstcheck.underived, {"linear": {"firstcheck.underived": "x"}}, "underived"),
    "a derivative of zeros": (torch.ops.firstcheck.silent, {"linear": {"firstcheck.silent": "x"}}, "silent"),
    "a derivative of None": (torch.ops.firstcheck.nothing, {"linear": {"firstcheck.nothing": "x"}}, "nothing"),
    "a derivative that fails": (torch.ops.firstcheck.failing, {"linear": {"firstcheck.failing": "x"}}, "failing"),
    "a derivative of another map": (torch.ops.firstcheck.integral, {"movement": {"firstcheck.integral": "x"}}, "integral"),
    "an activation as movement": (torch.tanh, {"movement": {"aten.tanh": "self"}}, "aten.tanh"),
    "an activation as linear": (nn.functional.gelu, {"linear": {"aten.gelu": "self"}}, "aten.gelu"),
    "a slope that is not f(x)/x": (
        torch.tanh,
        {"nonlinearity": {"aten.tanh": {"args": "self", "slope": "1 + abs(x)"}}},
        "aten.tanh",
    ),
    "a wrong degree": (torch.relu, {"homogeneous": {"aten.relu": {"args": "self", "degree": 2}}}, "aten.relu"),
    "a product as a sum": (lambda h: h * h.flip(-1), {"linear": {"aten.mul": "self other"}}, "aten.mul"),
    "a softmax as linear": (lambda h: h.softmax(-1), {"linear": {"aten.softmax": "self"}}, "aten.softmax"),
    "a rounding as movement": (torch.round, {"movement": {"aten.round": "self"}}, "aten.round"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_that_does_not_hold_is_named(name):
    function, ops, named = DECLARED[name]
    with pytest.raises(NumericalError, match=named):
        lrp_fx.convert(net(function), ops=ops).explain(X, target=1)


def _wrong(function):
    return lambda *args, **kwargs: 1.01 * function(*args, **kwargs)


#: rule whose implementation is broken -> (object, attribute, what is put there, function, what the error has to name)
BROKEN = {
    "uniform rule": (
        rule_ops._Scale, "backward", staticmethod(lambda ctx, g: (1.1 * g * ctx.factor, None)),
        lambda h: h * h.flip(-1), "aten.mul",
    ),
    "slope in closed form": (rule_ops, "closed_slope", _wrong(slopes.closed_slope), nn.functional.silu, "aten.silu"),
    "slope by division": (
        rule_ops._Identity, "backward", staticmethod(lambda ctx, g: (None, 2 * g * ctx.saved_tensors[0], None)),
        torch.tanh, "aten.tanh",
    ),
    "normalization": (
        rule_ops, "normalization_cotangent", _wrong(rule_ops.normalization_cotangent),
        lambda h: nn.functional.layer_norm(h, (6,)), "aten.layer_norm",
    ),
    "a rule that changes the output": (
        rule_ops._Identity, "forward", staticmethod(lambda y, x, slope: 1.01 * y), torch.tanh, "aten.tanh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_that_is_broken_is_named(name, monkeypatch):
    place, attribute, wrong, function, named = BROKEN[name]
    model = net(function)
    lrp_fx.convert(model).explain(X, target=1)
    monkeypatch.setattr(place, attribute, wrong)
    with pytest.raises(NumericalError, match=named):
        lrp_fx.convert(model).explain(X, target=1)


@pytest.mark.parametrize(("off", "named"), [(1e-4, True), (1e-9, False)])
def test_a_rule_that_is_a_little_off_is_named(off, named, monkeypatch):
    """In double precision; what rounding makes is less."""
    monkeypatch.setattr(rule_ops, "closed_slope", lambda formula, x: (1 + off) * slopes.closed_slope(formula, x))
    xmodel = lrp_fx.convert(net(nn.functional.silu))
    with pytest.raises(NumericalError, match=r"aten\.silu") if named else contextlib.nullcontext():
        xmodel.explain(X, target=1)


def test_a_sweep_that_differs_from_its_accounts_is_named(monkeypatch):
    monkeypatch.setattr(sweep, "relevance_of", lambda *given: rule_ops.relevance_of(*given).flip(0))
    with pytest.raises(NumericalError, match="differs between the sweep and a run node by node"):
        lrp_fx.convert(net(torch.tanh)).explain(X, target=1)


def test_a_quantized_layer_declared_linear_is_no_quiet_zero():
    layers = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(NumericalError, match="linear_dynamic"):
        lrp_fx.convert(quantized, ops={"linear": {"quantized.linear_dynamic": "X"}}).explain(
            torch.randn(2, 8), target=1
        )


class Counting:
    """Counts accounting sweeps."""

    def __init__(self, monkeypatch):
        self.count, account = 0, explaining.account

        def counted(*args):
            self.count += 1
            return account(*args)

        monkeypatch.setattr(explaining, "account", counted)


def test_the_first_explanation_is_checked_and_later_ones_pay_nothing(monkeypatch):
    model, counting = net(torch.tanh), Counting(monkeypatch)
    xmodel = lrp_fx.convert(model)
    for _ in range(3):
        xmodel.explain(X, target=1)
    assert counting.count == 1
    xmodel.explain(X[:1], target=0, at="one")  # of the same capture and rule set
    xmodel.explain(X, targets=[0, 1])
    xmodel.explain_conditions(X, conditions=[{"one": 0}, {"one": 1}])
    assert counting.count == 1
    xmodel.explain(X, rules="cp_lrp")  # another rule set
    xmodel.explain(X[:, None], target=(0, 1))  # another capture
    assert counting.count == 3
    xmodel.explain(X, check="always")
    assert counting.count == 4
    lrp_fx.convert(model, check=False).explain(X)
    lrp_fx.convert(model).explain(X, check=False)
    lrp_fx.convert(model).explain(X, memory="low")
    assert counting.count == 4
    always = lrp_fx.convert(model, check="always")
    always.explain(X)
    always.explain_conditions(X, conditions=[{"one": 0}])
    always.explain(X, targets=[0])
    assert counting.count == 7


@pytest.mark.parametrize("check", ["sometimes", True, 1, None])
def test_when_to_check_is_one_of_three(check):
    with pytest.raises(ValueError, match="check="):
        lrp_fx.convert(net(torch.tanh), check=check)


def test_what_did_not_hold_is_checked_again():
    xmodel = lrp_fx.convert(net(torch.tanh), ops={"movement": {"aten.tanh": "self"}})
    for _ in range(2):
        with pytest.raises(NumericalError, match=r"aten\.tanh"):
            xmodel.explain(X)
    with pytest.raises(NumericalError, match=r"aten\.tanh"):
        xmodel.explain(X, targets=[0, 1])
    assert xmodel.explain(X, check=False).relevance["x"].isfinite().all()


@pytest.mark.parametrize(
    "rules",
    few(["attnlrp", "cp_lrp", "gradient", "epsilon_plus", "vit_gamma", "guided_backprop"], "attnlrp", "epsilon_plus"),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_sound_passes_in_every_precision(rules, dtype):
    model, inputs = build("vit")
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    lrp_fx.convert(model.to(dtype), rules=rules).explain(**inputs, target=1)


class Ends(nn.Module):
    """A function behind a ReLU, which yields zeros, and a layer behind it."""

    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(self.function(x.relu()))


def _masked(h):
    scores = (h @ h.T).masked_fill(torch.ones(len(h), len(h), dtype=torch.bool).tril(-1).logical_not(), -math.inf)
    return scores.softmax(-1) @ h


#: forward that is not finite -> (function, the operator at which that first arises)
NOT_FINITE = {
    "logarithm of 0": (torch.log, r"aten\.log\.default"),
    "logarithm of 0, further on": (lambda h: (h.log() * 2 + 1).exp().log().cumsum(-1), r"aten\.log\.default"),
    "division by 0": (lambda h: 1 / h, r"aten\.(reciprocal|div)"),
    "0 / 0": (lambda h: h / h, r"aten\.div"),
    "power of 0": (lambda h: h**-1.5, r"aten\.pow"),
    "a row that is masked as a whole": (_masked, r"aten\.softmax"),
    "a mask in front": (lambda h: (h + torch.where(h > 1, 0.0, -math.inf)).softmax(-1), r"aten\.softmax"),
}


@pytest.mark.parametrize("name", NOT_FINITE)
@pytest.mark.parametrize("check", few(["first", False], "first"))
def test_where_an_output_is_not_finite_is_its_first_node(name, check):
    function, operator = NOT_FINITE[name]
    with pytest.raises(NumericalError, match=rf"not finite, first at node .*\(op {operator}"):
        lrp_fx.convert(Ends(function).double()).explain(-X.abs(), check=check)


def test_a_parameter_that_is_nan_is_named():
    model = net(torch.tanh)
    model.one.weight.data[0, 0] = math.nan
    with pytest.raises(NumericalError, match=r"first at node .*one_?\.?weight"):
        lrp_fx.convert(model, capture="trace").explain(X)


def test_relevance_that_is_not_finite_names_the_rule_that_makes_it_so():
    """A rule of the user's own that divides by the output of the first layer, which is 0 at its second place."""
    lrp_fx.register_rule("divides by the output", base="epsilon", backward=lambda g, y: g / y)

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
            self.one.weight.data[1] = 0

        def forward(self, x):
            return self.two(self.one(x))

    rules = {"base": "attnlrp", "rules": {"linear": "divides by the output"}}
    with pytest.raises(NumericalError, match=r"relevance is not finite, first at node 'linear'"):
        lrp_fx.convert(Dead().half(), rules=rules).explain(torch.rand(1, 4).half())


def test_a_masked_row_that_the_model_replaces_has_a_ledger():
    class Replaced(nn.Module):
        def forward(self, v):
            mask = ~torch.ones(5, 5, dtype=torch.bool).tril(-1)
            return (v @ v.transpose(1, 2)).masked_fill(mask, -math.inf).softmax(-1).nan_to_num() @ v

    v = torch.randn(2, 5, 4, dtype=torch.float64)
    found = lrp_fx.convert(Replaced()).explain(v, target=lambda y: y.sum((1, 2)))
    assert found.ledger.balance < 1e-12 and all(math.isfinite(a) for a in found.ledger.values())
    assert float(found.relevance["v"].sum() - found.ledger["input"]) == pytest.approx(0, abs=1e-12)


def test_a_target_that_reaches_no_node_is_named():
    with pytest.raises(TargetError, match="does not depend"):
        lrp_fx.convert(net(torch.tanh)).explain(X, target=lambda y: y.new_ones(2, requires_grad=True))


def test_errors_are_typed():
    assert issubclass(NumericalError, LrpError)
