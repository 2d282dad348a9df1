"""Half precision: the sum and the map of double precision with the same rounded numbers; and finite at any input."""

import pytest
import torch
import transformers as tf
from models import GQA, build, few, ids
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.errors import InputError, NumericalError
from lrp_fx.operators.table import OpTable
from lrp_fx.rules.formulas import shared

FUNCTIONS = [
    F.silu, F.gelu, F.relu, torch.tanh, torch.sigmoid, F.softplus, torch.exp, F.mish, F.elu, F.hardswish, torch.erf, torch.cos,
    lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.rms_norm(x, x.shape[-1:]), lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: F.normalize(x, dim=-1, eps=1e-3), lambda x: x.softmax(-1), lambda x: x * x, lambda x: x @ x.transpose(-1, -2),
]  # fmt: skip


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.inner, self.outer = function, nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.outer(self.function(self.inner(x))).sum(1)


@pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16, torch.float32], torch.float16))
@pytest.mark.parametrize("index", range(len(FUNCTIONS)))
def test_finite_at_any_input(dtype, index):
    x = torch.randn(4, 6, 6, dtype=dtype)
    x[0], x[1, :, ::2], x[2] = 0, 0, x[2] * 1e-4
    attribution = lrp_fx.convert(Around(FUNCTIONS[index]).to(dtype), x).explain(x)
    assert attribution.relevance["x"].isfinite().all()
    assert (attribution.relevance["x"][0] == 0).all()


HALF = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
NONLINEAR = sorted(name for name, spec in OpTable.load().specs.items() if spec.kind == "nonlinearity")
#: operator -> calls with other arguments than the default ones
ARGUMENTS = {
    "aten.clamp": [(-10, 10), (0.05, None), (None, -0.05), (-0.04, 0.03), (0, 6)], "aten.clip": [(-10, 10), (0.5, 1)],
    "aten.clamp_min": [(-1,), (0,), (0.3,)], "aten.clamp_max": [(1,), (0,), (-0.3,)], "aten.fmod": [(0.7,)],
    "aten.hardtanh": [(), (-10, 10), (0.25, 2), (-0.04, 0.03)], "aten.remainder": [(0.7,)], "aten.elu": [(), (0.5, 1.5)],
    "aten.celu": [(), (0.3,)], "aten.softplus": [(), (4, 2)], "aten.threshold": [(0.1, 0.2), (-0.2, 0.0), (0.1, 0.0)],
    "aten.hardshrink": [(), (0.03,)], "aten.softshrink": [(), (0.03,)], "aten.gelu": [(), ("tanh",)],
}  # fmt: skip
#: where a function is defined, else on both sides of 0
DOMAIN = {"acosh": (1.1, 3), "log": (0.01, 3), "log2": (0.01, 3), "log10": (0.01, 3), "log1p": (-0.9, 3)}
DOMAIN |= {
    "digamma": (0.1, 3),
    "lgamma": (0.1, 3),
    "polygamma": (0.1, 3),
    "logit": (0.05, 0.95),
    "special_entr": (0, 3),
}
DOMAIN |= {"igamma": (0, 3), "igammac": (0, 3)}
DOMAIN |= dict.fromkeys(("acos", "asin", "atanh", "erfinv"), (-0.9, 0.9))
#: without a kernel in half precision on a processor
NO_HALF = ("aten.special_erfcx", "aten.special_log_ndtr", "aten.special_ndtri")
CALLS = [(name, args) for name in NONLINEAR if name not in NO_HALF for args in ARGUMENTS.get(name, [()])]


def called(name, args):
    packet = getattr(torch.ops.aten, name.split(".")[1])
    if name == "aten.pow.Scalar":
        return lambda x: packet(2.5, x)
    if name == "aten.polygamma":
        return lambda x: packet(1, x)
    if name in ("aten.igamma", "aten.igammac"):
        return lambda x: packet(torch.full_like(x, 2.0), x)
    if name == "aten.pow.Tensor_Tensor":
        return lambda x: packet(x.abs() + 0.1, torch.full_like(x, 1.5))
    if name == "aten.gelu" and args:
        return lambda x: packet(x, approximate=args[0])
    return lambda x: packet(x, *args)


@pytest.mark.parametrize("name", NO_HALF)
def test_operators_that_are_left_out_have_no_kernel_in_half_precision(name):
    with pytest.raises(NotImplementedError, match="not implemented for"):
        called(name, ())(torch.ones(2, dtype=torch.float16))


class Weighed(nn.Module):
    """weight * f(x), whose relevance under the identity rule is itself, position by position."""

    def __init__(self, function, weight):
        super().__init__()
        self.function = function
        self.register_buffer("weight", weight)

    def forward(self, x):
        return self.function(x) * self.weight


def through_zero(name):
    low, high = DOMAIN.get(name.split(".")[1], (-3.0, 3.0))
    small = torch.tensor([0.0, 0.01, -0.01, 0.03, -0.03, 0.06, -0.06, 0.2, -0.2], dtype=torch.float64)
    values = torch.cat([torch.linspace(low, high, 23, dtype=torch.float64), small])
    values = torch.where(values.abs() < 1e-6, 0.0, values)  # (the middle of the range is nearly 0)
    return values[(values >= low) & (values <= high)].unsqueeze(0)


@pytest.mark.parametrize("dtype", few(HALF, torch.bfloat16))
@pytest.mark.parametrize(("name", "args"), CALLS, ids=str)
def test_nonlinearities_in_half_precision_have_the_map_and_the_sum_of_double(name, args, dtype):
    function, x = called(name, args), through_zero(name).to(dtype)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = function(x.double()) * weight.double()  # the identity rule hands all of it to x, but for x = 0
    exact = torch.where(x == 0, 0.0, exact)
    xmodel = lrp_fx.convert(Weighed(function, weight), x, dynamic=False, rules="attnlrp")
    found = xmodel.explain(x, target=lambda out: out.sum(1))
    own = torch.where(x == 0, 0.0, (function(x) * weight).double())  # what rounding the function itself leaves
    allowed = 4 * HALF[dtype] * exact.abs() + (own - exact).abs() + 4 * HALF[dtype] ** 2
    relevance = found.relevance["x"].double()
    assert ((relevance - exact).abs() <= allowed).all(), torch.stack([x.double(), relevance, exact])[:, 0].T
    assert (relevance - exact).sum().abs() <= allowed.sum()


@pytest.mark.parametrize(
    ("dtype", "radius"),
    [(torch.float64, 2.0**-26), (torch.float32, 2.0**-11.5), (torch.bfloat16, 2.0**-11.5), (torch.float16, 2.0**-10)],
)
def test_a_singular_slope_is_exact_outside_of_its_radius(dtype, radius):
    """cos(x) / x is divided by x, and by the radius where |x| is less."""
    share = torch.tensor([[0.25, -0.25, 0.75, -0.75, 1.25, -1.25, 3.0, -3.0]], dtype=torch.float64)
    x = (share * radius).to(dtype)
    ones = torch.ones(8, dtype=dtype)
    xmodel = lrp_fx.convert(Weighed(torch.cos, ones), x, dynamic=False, rules="attnlrp")
    found = xmodel.explain(x, target=lambda out: out.sum(1))
    wanted = share.abs().clamp(max=1) * x.double().cos()
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-12)
    torch.testing.assert_close(found.relevance["x"].double(), wanted, rtol=tolerance, atol=0)
    assert found.ledger["stabiliser"] == pytest.approx(float((1 - wanted)[:, :4].sum()), rel=4 * tolerance)


@pytest.mark.parametrize("function", [torch.tanh, torch.sin, torch.expm1, torch.atan], ids=lambda f: f.__name__)
def test_a_difference_of_zero_hands_its_cotangent_on(function):
    class Difference(nn.Module):
        def forward(self, a, b):
            return function(a - b)

    a = torch.full((2, 3), 2.0, dtype=torch.float64)
    found = lrp_fx.convert(Difference()).explain(a, a.clone(), target=1)
    assert found.relevance["a"].sum(1).tolist() == [2, 2] and found.relevance["b"].sum(1).tolist() == [-2, -2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", few([1.0, 0.1, 0.01, 1e-3, 1e-4], 1.0, 1e-4))
@pytest.mark.parametrize("norm", [
    lambda x: F.rms_norm(x, (16,)), lambda x: F.rms_norm(x, (16,), eps=1e-5), lambda x: F.layer_norm(x, (16,)),
    lambda x: F.group_norm(x.transpose(1, 2), 4).transpose(1, 2), lambda x: F.normalize(x, dim=-1),
    lambda x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2),
], ids=["rms", "rms eps", "layer", "group", "normalize", "instance"])  # fmt: skip
def test_normalizations_in_half_precision_have_the_map_and_the_sum_of_double(norm, scale, dtype):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))

        def forward(self, x):
            return (norm(x) * self.weight).sum((1, 2))

    x = (torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    model, each = Normed().to(dtype), lambda out: out
    low = lrp_fx.convert(model, x, dynamic=False).explain(x, target=each)
    wide = x.double()
    if norm(x[:1]).isfinite().all() and "rms_norm" in norm.__code__.co_names and 1e-5 not in norm.__code__.co_consts:
        eps = torch.finfo(torch.float32).eps  # what the kernel adds in half precision: that of its own arithmetic
        exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * model.weight.double()
    else:
        exact = lrp_fx.convert(model.double(), wide, dynamic=False).explain(wide, target=each).relevance["x"]
    step = max(HALF.get(dtype, 2.0**-20), 2.0**-20)
    error = (low.relevance["x"].double() - exact).abs()
    assert (error <= 8 * step * exact.abs().amax()).all()
    assert ((low.relevance["x"].double() - exact).sum((1, 2)).abs() <= 4 * step * exact.abs().sum((1, 2))).all()


@pytest.mark.parametrize("dtype", HALF)
def test_an_epsilon_that_half_precision_cannot_hold(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    model[0].weight.data[1] = 0
    x, rules = (
        torch.rand(3, 4).to(dtype),
        {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 1e-9}}},
    )
    low = lrp_fx.convert(model.to(dtype), x, rules=rules).explain(x, target=0).relevance["input"].double()
    high = lrp_fx.convert(model.double(), x.double(), rules=rules).explain(x.double(), target=0).relevance["input"]
    torch.testing.assert_close(low, high, rtol=8 * HALF[dtype], atol=8 * HALF[dtype] * float(high.abs().max()))


def test_a_clamp_between_tensors_is_the_identity_inside():
    x = torch.tensor([[0.0, 1e-9, -1e-9, 0.5, -0.5, 3.0]], dtype=torch.float64)
    low, high = torch.tensor([-1.0, -1, -1, -1, 0.25, 1]).double(), torch.tensor([1.0, 1, 1, 0.3, 1, 2]).double()
    model = Weighed(lambda x: torch.clamp(x, low, high), torch.ones(1, 6, dtype=torch.float64))
    found = lrp_fx.convert(model, x).explain(x, target=lambda out: out.sum(1)).relevance["x"]
    torch.testing.assert_close(found, x.clamp(low, high), rtol=1e-12, atol=0)


def test_scores_under_a_causal_mask_are_finite_for_many_targets():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 24), nn.Linear(8, 5)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
            return self.outer(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x, at = Named(Attention()).double(), torch.randn(1, 6, 8, dtype=torch.float64), "attn@scores"
    converted = lrp_fx.convert(model, x)
    one = converted.explain(x, target=(5, 1), at=at).latents[at]
    many = converted.explain(x, targets=[(5, 1), (3, 2)], at=at).latents[at]
    assert many.isfinite().all()
    torch.testing.assert_close(many[0], one, rtol=1e-9, atol=1e-12)


class Named(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x):
        return self.attn(x)


@pytest.mark.parametrize("rule", ["proportional", "even"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_windows_without_a_positive_value_are_finite(dtype, rule):
    x = torch.randn(4, 6, 6, dtype=dtype)
    x[0], x[1, :, ::2], x[2] = 0, 0, -x[2].abs()
    model = nn.Sequential(nn.MaxPool1d(3, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(1), nn.Linear(6, 3, bias=False))
    attribution = lrp_fx.convert(model.to(dtype), x, rules={"base": "attnlrp", "rules": {"selection": rule}}).explain(x)
    found, value = attribution.relevance["input"], attribution.target
    assert found.isfinite().all()
    assert not found[0].any() and not found[2].any()
    torch.testing.assert_close(found.float().sum((1, 2)), value.float(), rtol=0.02, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "correlation"), few([(torch.bfloat16, 0.99), (torch.float16, 0.999)], (torch.bfloat16, 0.99))
)
def test_half_precision_llama_correlates_with_double(dtype, correlation):
    torch.manual_seed(1)
    config = tf.LlamaConfig(**{**GQA, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128})
    model = tf.LlamaForCausalLM(config).eval()
    tokens = ids(4, 32)
    low = lrp_fx.convert(model.to(dtype), input_ids=tokens).explain(input_ids=tokens, target=5).relevance["input_ids"]
    model = model.to(torch.float64)  # the same rounded weights
    high = lrp_fx.convert(model, input_ids=tokens).explain(input_ids=tokens, target=5).relevance["input_ids"]
    assert low.isfinite().all()
    assert torch.corrcoef(torch.stack([low.double().flatten(), high.flatten()]))[0, 1] > correlation


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_llama_is_finite_at_zero(dtype):
    model, _ = build("llama2", dtype)
    embeddings = torch.zeros(1, 5, 32, dtype=dtype)
    relevance = (
        lrp_fx.convert(model, inputs_embeds=embeddings).explain(inputs_embeds=embeddings).relevance["inputs_embeds"]
    )
    assert (relevance == 0).all()


def test_overflow_is_a_named_error():
    class Overflow(nn.Module):
        def forward(self, x):
            return torch.exp(x * 1000).sum(-1)

    with pytest.raises(NumericalError, match=r"not finite.*exp|exp.*not finite"):
        lrp_fx.convert(Overflow()).explain(torch.full((2, 3), 100.0))


def test_nan_input_is_a_named_error():
    with pytest.raises(InputError, match="'input' contains NaN"):
        lrp_fx.convert(nn.Linear(3, 2)).explain(torch.tensor([[1.0, float("nan"), 0.0]]))


@pytest.mark.parametrize("sign", [0, 1])
def test_a_share_of_a_small_output_is_not_rounded_to_zero(sign):
    """The product of output and cotangent is smaller than float16 can be; divided by the output, it is not."""
    y, g, total = (torch.tensor([value], dtype=torch.float16) for value in (1e-3, 1e-5, 2e-3))
    expected = y.double() * g.double() / total.double()
    torch.testing.assert_close(shared(y, g, total, 1.0, sign, 1e-9).double(), expected, rtol=0.02, atol=0)
