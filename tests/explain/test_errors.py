"""Every error names where it happened and what to do."""

import json

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx import errors
from lrp_fx.extras import require
from lrp_fx.rules.ruleset import RuleSet


@torch.library.custom_op("lrp_test::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


mystery.register_fake(lambda x: torch.empty_like(x))
mystery.register_autograd(lambda ctx, g: 3 * g, setup_context=lambda ctx, inputs, output: None)


class Inner(nn.Module):
    def forward(self, x):
        return mystery(x)


class UsesMystery(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Inner()

    def forward(self, x):
        return self.block(x).sum(-1)


def test_unknown_op_names_op_module_source_and_remedy():
    with pytest.raises(errors.UnknownOpError) as caught:
        lrp_fx.convert(UsesMystery(), torch.randn(2, 3))
    message = str(caught.value)
    assert "lrp_test.mystery" in message and "module 'block'" in message
    assert "test_errors.py" in message and "return mystery(x)" in message
    assert '{"linear": {"lrp_test.mystery": "x"}}' in message


def test_a_declared_op_converts(tmp_path):
    x = torch.randn(2, 3, dtype=torch.float64)
    attribution = lrp_fx.convert(UsesMystery(), x, ops={"linear": {"lrp_test.mystery": "x"}}).explain(x)
    torch.testing.assert_close(attribution.relevance["x"], 3 * x)
    table = tmp_path / "mine.toml"
    table.write_text('[linear]\n"lrp_test.mystery" = "x"\n')
    assert lrp_fx.convert(UsesMystery(), x, ops=table).explain(x).ledger.balance < 1e-9


def test_an_unknown_op_off_the_path_of_relevance_is_no_error():
    class Off(nn.Module):
        def forward(self, x):
            return x * mystery(torch.ones(3, dtype=x.dtype))

    lrp_fx.convert(Off(), torch.randn(2, 3)).explain(torch.randn(2, 3))


def test_capture_error_carries_the_reason():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(errors.CaptureError, match=r"cannot capture Branches.*\n.*Remedy"):
        lrp_fx.convert(Branches(), torch.randn(2, 3), capture="export")

    class Fails(nn.Module):
        def forward(self, x):
            return x @ torch.ones(7, 7)

    with pytest.raises(errors.CaptureError, match=r"Fails does not run on these inputs: RuntimeError.*\n.*Remedy"):
        lrp_fx.convert(Fails(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="choose one of auto, export, trace"):
        lrp_fx.convert(Branches(), torch.randn(2, 3), capture="dynamo")


class Nested(nn.Module):
    """Rows as one nested tensor."""

    def forward(self, x):
        rows = torch.nested.nested_tensor(list(x.unbind()), layout=torch.jagged)
        return torch.stack(rows.sin().unbind()).sum(1, keepdim=True)


def test_a_run_that_cannot_be_recorded_is_not_the_model_s_fault():
    x = torch.randn(2, 3)
    Nested()(x)
    with pytest.raises(errors.CaptureError, match=r"Nested runs on these inputs, but .*\n.*pad rather than nest"):
        lrp_fx.convert(Nested(), x)


def test_nothing_captured_yet():
    with pytest.raises(errors.CaptureError, match=r"give convert\(\) example inputs"):
        lrp_fx.convert(nn.Linear(2, 2)).report()


def test_empty_batch():
    with pytest.raises(errors.InputError, match=r"'input' is empty \(shape \(0, 2\)\)"):
        lrp_fx.convert(nn.Linear(2, 2)).explain(torch.randn(0, 2))


def test_wrong_dtype():
    xmodel = lrp_fx.convert(nn.Sequential(nn.Linear(2, 2)))
    for call in (xmodel, xmodel.explain):
        with pytest.raises(errors.InputError) as caught:
            call(torch.randn(3, 2, dtype=torch.float64))
        message = str(caught.value)
        assert "same dtype" in message and "module '0'" in message
        assert "'input' is torch.float64" in message and "parameters are torch.float32" in message


def test_not_a_module():
    with pytest.raises(TypeError, match=r"expects an nn\.Module, not function"):
        lrp_fx.convert(lambda x: x)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("attnlpr", r"no rule set 'attnlpr'.*attnlrp"),
        ({"base": "attnlrp", "rules": {"linera": "epsilon"}}, "unknown role 'linera'; roles are linear"),
        (
            {"base": "attnlrp", "rules": {"linear": "epsilonn"}},
            "role 'linear' has no rule 'epsilonn'; choose one of epsilon",
        ),
        ({"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": -1}}}, "epsilon must not be negative"),
        (
            {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilom": 0.1}}},
            "parameters epsilon, not epsilom",
        ),
        ({"base": "attnlrp", "rules": {"bilinear": {"rule": "uniform", "gamma": 1}}}, "uniform has no parameters"),
        ({"rules": {"linear": "epsilon"}}, r"no rule for role\(s\) selection"),
        ({"base": "attnlrp", "rule": {}}, r"unknown keys \['rule'\]"),
    ],
)
def test_bad_rule_sets(source, message):
    with pytest.raises(errors.RuleSetError, match=message):
        RuleSet.load(source)


def test_bad_op_tables():
    with pytest.raises(
        errors.RuleSetError,
        match=r"unknown section \[linaer\] \(did you mean 'linear'\?\); the op table knows movement",
    ):
        lrp_fx.convert(nn.Linear(2, 2), ops={"linaer": {}})
    with pytest.raises(errors.RuleSetError, match="unknown role 'linaer'"):
        lrp_fx.register_op("a::b", role="linaer", relevance_args=["x"])


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (
            {"linear": {"aten.cosine_similarty": "x1"}},
            r"no operator 'aten.cosine_similarty' \(did you mean 'aten.cosine_s",
        ),
        ({"linear": {"atne.mul": "self"}}, "no operator 'atne.mul'"),
        ({"linear": {"aten.mul.Tnsor": "self"}}, "no operator 'aten.mul.Tnsor'"),
        ({"linear": {"lrp_test.mystery": "y"}}, r"mystery names y.*arguments are x$"),
        (
            {"nonlinearity": {"lrp_test.mystery": {"args": "x", "slopee": "x"}}},
            r"field 'slopee' \(did you mean 'slope'",
        ),
        ({"movement": {"lrp_test.mystery": {"args": "x", "degree": 1}}}, "unknown field 'degree'"),
        ({"nonlinearity": {"aten.atan2": "self other"}}, 'a "function"'),
        ({"linear": "lrp_test.mystery"}, r"\[linear\] must map operators to their operands"),
    ],
)
def test_declarations_that_say_nothing_true(ops, message, tmp_path):
    with pytest.raises(errors.RuleSetError, match=message):
        lrp_fx.convert(nn.Linear(2, 2), ops=ops)
    (kind, entries), *_ = ops.items()
    if isinstance(entries, dict):
        ((name, fields), *_) = entries.items()
        fields = dict(fields) if isinstance(fields, dict) else {"args": fields}
        named = fields.pop("args").split()
        with pytest.raises(errors.RuleSetError, match=message):
            lrp_fx.register_op(name.replace(".", "::", 1), role=kind, relevance_args=named, **fields)
        assert name not in lrp_fx.operators.table._REGISTERED


def own(name, function, operands=1, derivative=True):
    """A custom operator that computes ``function``."""
    schema = "(" + ", ".join(f"Tensor {c}" for c in "xy"[:operands]) + ") -> Tensor"
    op = torch.library.custom_op(f"lrp_advice::{name}", function, mutates_args=(), schema=schema)
    op.register_fake(function)

    def backward(ctx, g):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            return torch.autograd.grad(function(*leaves), leaves, g)

    if derivative:
        op.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return op


ADVICE = {
    "shuffled": (own("shuffled", lambda x: x.flip(-1).clone()), '"movement": {"lrp_advice.shuffled": "x"}'),
    "tripled": (own("tripled", lambda x: 3 * x), '"linear": {"lrp_advice.tripled": "x"}'),
    "matrix": (own("matrix", lambda x, y: x @ y.mT, 2), '"product": {"lrp_advice.matrix": "x y"}'),
    "gram": (own("gram", lambda x: x @ x.mT), '"degree": 2.0, "elementwise": false'),
    "length": (own("length", lambda x, y: torch.hypot(x, y), 2), '"linear": {"lrp_advice.length": "x y"}'),
    "swish": (own("swish", lambda x: x * x.sigmoid()), '"nonlinearity": {"lrp_advice.swish": "x"}'),
    "blunt": (own("blunt", lambda x: x * x.sigmoid(), derivative=False), '"nonlinearity": {"lrp_advice.blunt": "x"}'),
    "sums": (own("sums", lambda x, y: (x.exp() + y).log(), 2), '"function": {"lrp_advice.sums": "x y"}'),
    "lost": (own("lost", lambda x: x @ x.mT, derivative=False), "it has no derivative"),
    "noise": (own("noise", lambda x: x + torch.randn_like(x)), "other numbers every time"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_what_the_operator_turns_out_to_be(name):
    """And following it gives relevance that adds up."""
    op, expected = ADVICE[name]

    class Uses(nn.Module):
        def forward(self, x):
            return op(x) if len(op._opoverload._schema.arguments) == 1 else op(x, 2 * x)

    x = torch.rand(2, 4, dtype=torch.float64) + 0.5
    state = torch.get_rng_state()
    with pytest.raises(errors.UnknownOpError) as caught:
        lrp_fx.convert(Uses(), x)
    assert name == "noise" or torch.equal(state, torch.get_rng_state())
    message = str(caught.value)
    assert expected in message and "docs/operators.md" in message
    if "Declare it so" in message:
        ops = json.loads(message.partition("convert(ops=...): ")[2].partition(". (docs")[0])
        assert lrp_fx.convert(Uses(), x, ops=ops).explain(x, target=0).ledger.balance < 1e-12
    else:
        assert '"linear"' not in message


def test_missing_extra_names_the_extra():
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'lrp_fx\[html\]'"):
        require("a_module_that_does_not_exist", "html")


class Behind(nn.Module):
    """What comes behind a softmax: probabilities, log-probabilities, a loss beside the logits."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.form = nn.Linear(4, 3), form
        self.double()

    def forward(self, x):
        return self.form(self.head(x))


BEHIND = {
    "probabilities": lambda z: z.softmax(-1),
    "log-probabilities": lambda z: z.log_softmax(-1),
    "written out": lambda z: (e := (z - z.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True),
    "less log-sum-exp": lambda z: z - torch.logsumexp(z, -1, keepdim=True),
}


@pytest.mark.parametrize("form", BEHIND)
def test_a_target_behind_a_softmax_that_the_rules_stop_names_the_logits(form):
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Behind(BEHIND[form]), x, rules="cp_lrp")
    with pytest.raises(errors.TargetError, match=r"(?s)behind a softmax.*explain the logits.*module 'head' returns"):
        xmodel.explain(x, target=1)
    assert xmodel.explain(x, target=1, rules="attnlrp").ledger.balance < 1e-12


def test_logits_that_the_model_returns_beside_its_loss_are_named_as_an_output():
    def form(z):
        return {"loss": nn.functional.nll_loss(z.log_softmax(-1), torch.tensor([0, 1]), reduction="none"), "logits": z}

    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Behind(form), x, rules="cp_lrp")
    with pytest.raises(errors.TargetError, match=r"output\['logits'\] of the model"):
        xmodel.explain(x, target=lambda output: output["loss"])
    found = xmodel.explain(x, target=lambda output: output["logits"][:, 1])
    assert found.ledger.balance < 1e-12


@pytest.mark.parametrize("rule", ["flat", "w-square"])
def test_a_rule_that_gives_relevance_to_zeros_behind_a_relu_names_the_layer_and_another_rule(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    xmodel = lrp_fx.convert(model, rules={"base": "attnlrp", "rules": {"dense": rule}})
    with pytest.raises(errors.NumericalError) as caught:
        xmodel.explain(torch.randn(2, 6, dtype=torch.float64), target=1)
    message = str(caught.value)
    assert f"Rule '{rule}' of node" in message and "module '2'" in message
    assert "z-plus" in message and "module '1'" in message
