"""Adapted and quantized models: the relevance of the plain model with the weights that they stand for."""

import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from models import few

import lrp_fx

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from adapted import PAIRS, difference, ids, in_eight_bits

from lrp_fx.capture.offload import Offloaded
from lrp_fx.capture.passes.linearity import Affine, Linearity

GAMMA = {"name": "gamma", "base": "attnlrp", "rules": {"dense": {"rule": "gamma", "gamma": 0.25}}}
#: gamma looks at the whole weight: not at parts that are added or scaled after
UNPACKED = ("int4", "int4, packed", "nf4", "8 bits")
EIGHT_BITS = ("8 bits", "8 bits, outliers")
#: activations as well: outputs are the dense model's, not quite the model's; 4-bit products, where a processor has bfloat16
ROUNDED = (*EIGHT_BITS, *(("nf4", "nf4, nested", "fp4") if has_avx512bf16() else ()))
TOLERANCE = {"LoRA": 1e-12} | dict.fromkeys(EIGHT_BITS, 1e-11)  # in float64; the others are in float32


CASES = [(name, "attnlrp") for name in PAIRS] + [(name, GAMMA) for name in UNPACKED]


@pytest.mark.parametrize(
    "name, rules",
    few(CASES, ("LoRA", "attnlrp"), ("8 bits", "attnlrp")),
    ids=[f"{n}-{r if isinstance(r, str) else 'gamma'}" for n, r in CASES],
)
def test_relevance_of_the_dense_model(name, rules):
    pair, inputs = PAIRS[name](), {"input_ids": ids()}
    with torch.no_grad():
        outputs = pair.model(**inputs).logits
    xmodel = lrp_fx.convert(pair.model, rules=rules, **inputs)
    found = xmodel.explain(**inputs, target=5)
    wanted = lrp_fx.convert(pair.dense, rules=rules).explain(**inputs, target=5)
    tolerance = TOLERANCE.get(name, 1e-5)
    assert difference(found.output.logits, wanted.output.logits) < tolerance
    assert difference(found.output.logits, outputs) < (1e-2 if name in ROUNDED else tolerance)
    exact = lrp_fx.convert(pair.dense.double(), rules=rules).explain(**inputs, target=5).relevance["input_ids"]
    rounding = difference(wanted.relevance["input_ids"].double(), exact)  # of the dense model, in float32 up to 3e-4
    assert rounding < 1e-3
    assert difference(found.relevance["input_ids"].double(), exact) < max(tolerance, 3 * rounding)
    assert abs(float(found.ledger.balance)) < 1e-5


@pytest.mark.parametrize("name", few(["int4, packed", "nf4", "8 bits"], "8 bits"))
def test_packed_weights_stay_packed(name):
    """What the graph holds of such a layer has no data of its own."""
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    held = [p for n, p in xmodel.graph_module.named_parameters() if "_unpacked" in n]
    assert len(held) >= 14 and all(isinstance(p, Offloaded) for p in held)


@pytest.mark.parametrize("name", few(["int4, packed", "nf4", "8 bits"], "8 bits"))
def test_lowered(name):
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    eager = xmodel.explain(input_ids=ids()).relevance["input_ids"]
    assert difference(xmodel.lower()(input_ids=ids()).relevance["input_ids"], eager) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4, packed", "nf4", "8 bits"])
def test_files_hold_packed_weights_as_what_they_stand_for(name, tmp_path):
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    graph, eager = xmodel.lower(target=0), xmodel.explain(input_ids=ids(), target=5).relevance["input_ids"]
    graph.save(tmp_path / "x.pt2")
    for made in (graph.compile(backend="eager"), lrp_fx.load(tmp_path / "x.pt2")):
        found = made(input_ids=ids(), target=5)
        assert difference(found.relevance["input_ids"], eager) < 1e-5


def test_rounding_of_activations_is_said():
    with pytest.warns(UserWarning, match=r"round their operand .*14, .* 'model\.layers\.0\.self_attn\.q_proj'"):
        lrp_fx.convert(PAIRS["8 bits"]().model, input_ids=ids())


@pytest.mark.parametrize("threshold", few([0.0, 2.0, 6.0], 2.0))
def test_relevance_of_weights_dequantized_by_hand(threshold):
    """8 bits: integers times the scale of their row over 127; the library's own product is 1.8e-5 off from that."""
    pair, columns = in_eight_bits(threshold), []
    pair.model(input_ids=ids())
    for name, module in pair.model.named_modules():
        if hasattr(module, "state"):
            weight = module.state.CB.double() * module.state.SCB.double()[:, None] / 127
            pair.dense.get_submodule(name).weight.data = weight
            columns.append(0 if module.state.idx is None else len(module.state.idx))
    found = lrp_fx.convert(pair.model, input_ids=ids()).explain(input_ids=ids(), target=5).relevance["input_ids"]
    wanted = lrp_fx.convert(pair.dense).explain(input_ids=ids(), target=5).relevance["input_ids"]
    assert len(columns) == 14 and (sum(columns) > 0) == (threshold == 2.0)
    assert difference(found, wanted) < 5e-5


def rounded(x, levels=127):
    """To integers, by a scale per row."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / levels
    return (x / scale).round() * scale


def shifted(x):
    """To unsigned integers of 8 bits, by a scale and a zero point per row."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-9)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


FUNCTIONS = [
    (Linearity.EXACT, "nothing", lambda x, w: x @ w),
    (Linearity.ROUNDED, "by row", lambda x, w: rounded(x) @ w),
    (Linearity.ROUNDED, "by tensor", lambda x, w: rounded(x.reshape(1, -1)).reshape(x.shape) @ w),
    (Linearity.ROUNDED, "with a zero point", lambda x, w: shifted(x) @ w),
    (Linearity.ROUNDED, "but far columns", lambda x, w: torch.where(x.abs() > 6, x, rounded(x * (x.abs() <= 6))) @ w),
    (Linearity.NONE, "to 4 bits", lambda x, w: rounded(x, 7) @ w),
    (Linearity.NONE, "relu after", lambda x, w: (rounded(x) @ w).relu()),
    (Linearity.NONE, "relu before", lambda x, w: rounded(x.relu()) @ w),
    (Linearity.NONE, "cubed", lambda x, w: rounded(x**3) @ w),
    (Linearity.NONE, "magnitudes", lambda x, w: rounded(x.abs()) @ w),
    (Linearity.NONE, "clipped", lambda x, w: x.clamp(-8, 8) @ w),
    (Linearity.NONE, "capped", lambda x, w: 50 * torch.tanh(rounded(x) @ w / 50)),
    (Linearity.NONE, "normalised", lambda x, w: torch.nn.functional.normalize(x, dim=-1) @ w),
]


@pytest.mark.parametrize("width", [16, 512])
@pytest.mark.parametrize("expected, name, function", FUNCTIONS, ids=[name for _, name, _ in FUNCTIONS])
def test_what_is_linear_but_for_rounding(expected, name, function, width):
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(*shape, 32, generator=generator).double() for shape in ((width,), ()))
    affine = Affine(lambda x: function(x, weight) + bias, width, weight)
    assert affine.linearity(torch.finfo(weight.dtype).eps) is expected
    if expected is not Linearity.NONE:
        torch.testing.assert_close(affine.weight(), weight.t(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(affine.bias(), bias)


class InParts(torch.nn.Module):
    """Packed weights of one's own, behind an operator that rounds activations and one that multiplies."""

    def __init__(self, levels):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.levels = levels
        self.before, self.after = torch.nn.Linear(8, 16), torch.nn.Linear(24, 2)
        self.register_buffer("packed", torch.randint(-8, 8, (24, 16), dtype=torch.int8, generator=generator))
        self.register_buffer("scales", torch.rand(24, generator=generator).double())

    def dense(self):
        middle = torch.nn.Linear(16, 24, bias=False)
        middle.weight.data = self.packed * self.scales[:, None]
        return torch.nn.Sequential(self.before, middle, torch.nn.ReLU(), self.after)

    def forward(self, x):
        integers, scale = torch.ops.adapted_test.round(self.before(x), self.levels)
        return self.after(torch.ops.adapted_test.product(integers, scale, self.packed, self.scales).relu())


@torch.library.custom_op("adapted_test::round", mutates_args=())
def _round(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / levels
    return (x / scale).round().to(torch.int8), scale


@_round.register_fake
def _(x, levels):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(*x.shape[:-1], 1)


@torch.library.custom_op("adapted_test::product", mutates_args=())
def _product(x: torch.Tensor, scale: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x.to(scale) @ packed.to(scale).t()) * scale * scales


@_product.register_fake
def _(x, scale, packed, scales):
    return scale.new_empty(*x.shape[:-1], packed.shape[0])


def test_a_product_in_parts_is_one_layer():
    """No name is known: the rounding and the product are found by how they depend on one tensor."""
    model = InParts(levels=127).double()
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    xmodel = lrp_fx.convert(model, x)
    found, wanted = xmodel.explain(x, target=0), lrp_fx.convert(model.dense(), x).explain(x, target=0)
    assert difference(found.relevance["x"], wanted.relevance["input"]) < 1e-12
    assert not any("adapted_test" in str(node.target) for node in xmodel.graph_module.graph.nodes)


def test_coarse_rounding_of_activations_is_refused():
    with pytest.raises(lrp_fx.errors.UnknownOpError, match=r"adapted_test\.round"):
        lrp_fx.convert(InParts(levels=7).double(), torch.randn(5, 8, dtype=torch.float64))


class Curved(torch.nn.Module):
    """A product with packed weights, squared inside of the operator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.randint(-8, 8, (3, 4), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(3))

    def forward(self, x):
        return torch.ops.adapted_test.curved(x, self.packed, self.scales)


@torch.library.custom_op("adapted_test::curved", mutates_args=())
def curved(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x @ (packed * scales[:, None]).t()).square()


@curved.register_fake
def _(x, packed, scales):
    return x.new_empty(*x.shape[:-1], packed.shape[0])


def test_an_operator_that_is_not_linear_is_not_taken_for_a_layer():
    with pytest.raises(lrp_fx.errors.UnknownOpError, match="adapted_test"):
        lrp_fx.convert(Curved(), torch.randn(2, 4)).explain(torch.randn(2, 4))


def test_products_that_compute_in_fewer_bits_inside_are_linear_but_for_rounding():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))

    def inside(rows):
        return torch.nn.functional.linear(rows.bfloat16(), weight.bfloat16()).to(rows.dtype)

    function = Affine(inside, 64, torch.empty(0))
    assert function.linearity(torch.finfo(torch.float32).eps) is Linearity.ROUNDED
    curved = Affine(lambda rows: inside(rows).tanh().bfloat16().float(), 64, torch.empty(0))
    assert curved.linearity(torch.finfo(torch.float32).eps) is Linearity.NONE
