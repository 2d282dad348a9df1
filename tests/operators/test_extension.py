"""Extension without us: operators and rules of one's own."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.rules import registry

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("mine::doubled_swish", mutates_args=())
def doubled_swish(x: torch.Tensor) -> torch.Tensor:
    return 2 * x * torch.sigmoid(x)


@doubled_swish.register_fake
def _(x):
    return torch.empty_like(x)


doubled_swish.register_autograd(lambda ctx, g: None, setup_context=lambda ctx, inputs, output: None)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.b(torch.ops.mine.doubled_swish(self.a(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().double()


def test_an_unknown_operator_is_an_error(model):
    with pytest.raises(lrp_fx.errors.UnknownOpError, match=r"mine\.doubled_swish"):
        lrp_fx.convert(model, X, rules="attnlrp")


@pytest.mark.parametrize("way", ["toml", "registered"])
def test_one_line_declares_it(model, way, tmp_path):
    """With its slope declared, the sums are exact: nothing but the identity rule is needed."""
    if way == "toml":
        (tmp_path / "ops.toml").write_text(
            '[nonlinearity]\n"mine.doubled_swish" = { args = "x", slope = "2 * sigmoid(x)" }\n'
        )
        xmodel = lrp_fx.convert(model, X, ops=tmp_path / "ops.toml", rules="attnlrp")
    else:
        lrp_fx.register_op("mine::doubled_swish", role="nonlinearity", relevance_args=["x"], slope="2 * sigmoid(x)")
        try:
            xmodel = lrp_fx.convert(model, X, rules="attnlrp")
        finally:
            del lrp_fx.operators.table._REGISTERED["mine.doubled_swish"]
    attribution = xmodel.explain(X)
    assert torch.allclose(attribution.relevance["x"].sum(-1), attribution.target, rtol=1e-12)
    assert xmodel.verify(X).passed


@pytest.mark.parametrize("slope", ["2 * sigmoid(z)", "__import__('os').name", "x.mean()", "2 *"])
def test_a_slope_reads_x_and_the_functions_it_may_have(model, slope):
    ops = {"nonlinearity": {"mine.doubled_swish": {"args": "x", "slope": slope}}}
    with pytest.raises(lrp_fx.errors.RuleSetError, match=r"mine\.doubled_swish"):
        lrp_fx.convert(model, X, ops=ops, rules="attnlrp")


@pytest.fixture
def damped():
    lrp_fx.register_rule("damped", base="epsilon", backward=lambda g, y, strength: g * (1 - strength))
    yield {"base": "attnlrp", "rules": {"linear": {"rule": "damped", "strength": 0.25}}}
    del registry.REGISTERED["damped"]


def test_a_rule_of_one_s_own(damped):
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    xmodel = lrp_fx.convert(model, X, rules=damped)
    attribution = xmodel.explain(X)
    plain = xmodel.explain(X, rules="attnlrp")
    assert torch.allclose(attribution.relevance["input"], plain.relevance["input"] * 0.75**2)
    assert attribution.ledger["rule"] == pytest.approx(float(attribution.target.sum()) * (1 - 0.75**2))
    assert attribution.ledger.balance < 1e-12
    assert xmodel.verify(X).passed
    assert "damped(strength=0.25)" in str(xmodel.report())


def test_a_rule_s_own_base_still_acts(damped):
    lrp_fx.register_rule("halved", base="identity", backward=lambda g, y: g / 2)
    try:
        model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.LayerNorm(6)).double()
        rules = {"base": "attnlrp", "rules": {"nonlinearity": "halved", "normalization": "halved"}}
        xmodel = lrp_fx.convert(model, X, rules=rules)
        half, whole = (xmodel.explain(X, rules=r) for r in (rules, "attnlrp"))
        assert torch.allclose(half.relevance["input"], whole.relevance["input"] / 4)
        assert half.ledger.balance < 1e-12 and xmodel.verify(X).passed
    finally:
        del registry.REGISTERED["halved"]


@pytest.mark.parametrize(
    "name, base, message",
    [("uniform", "epsilon", "a new name"), ("mine", "nonsense", "a base among"), ("mine", "stop", "a base among")],
)
def test_bad_registrations(name, base, message):
    with pytest.raises(lrp_fx.errors.RuleSetError, match=message):
        lrp_fx.register_rule(name, base=base, backward=lambda g, y: g)


def test_an_unknown_rule_says_how_to_declare_it():
    with pytest.raises(lrp_fx.errors.RuleSetError, match="register_rule"):
        lrp_fx.convert(nn.Linear(2, 2), rules={"base": "attnlrp", "rules": {"linear": "mystery"}})


def test_a_declaration_that_names_no_argument_is_an_error():
    """It would lose relevance without a word."""
    with pytest.raises(lrp_fx.errors.RuleSetError, match=r"aten\.relu names input, but .* arguments are self$"):
        lrp_fx.convert(nn.ReLU(), X, ops={"movement": {"aten.relu": "input"}}, rules="attnlrp")


def test_the_op_table_names_arguments_that_exist():
    for name, spec in lrp_fx.OpTable.load().specs.items():
        space, _, op = name.partition(".")
        if space != "aten" or spec.kind == "constant":
            continue
        packet = getattr(torch.ops.aten, op.partition("(")[0].split(".")[0])  # "scatter_reduce(mean)": for one argument
        arguments = {a.name for o in packet.overloads() for a in getattr(packet, o)._schema.arguments}
        assert set(spec.args) & arguments, name
        assert set(spec.terms) <= arguments, name
