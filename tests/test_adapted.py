"""Adapted and quantized models: the relevance of the plain model with the weights that they stand for."""

import sys
from pathlib import Path

import pytest
import torch

import lrp_fx

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from adapted import PAIRS, difference, ids

from lrp_fx.capture.offload import Offloaded

GAMMA = {"name": "gamma", "base": "attnlrp", "rules": {"dense": {"rule": "gamma", "gamma": 0.25}}}
UNPACKED = (
    "int4",
    "int4, packed",
    "nf4",
)  # gamma looks at the whole weight: not at parts that are added or scaled after
TOLERANCE = {"LoRA": 1e-12}  # in float64; the others are in float32


CASES = [(name, "attnlrp") for name in PAIRS] + [(name, GAMMA) for name in UNPACKED]


@pytest.mark.parametrize("name, rules", CASES, ids=[f"{n}-{r if isinstance(r, str) else 'gamma'}" for n, r in CASES])
def test_relevance_of_the_dense_model(name, rules):
    pair, inputs = PAIRS[name](), {"input_ids": ids()}
    with torch.no_grad():
        outputs = pair.model(**inputs).logits
    xmodel = lrp_fx.convert(pair.model, rules=rules, **inputs)
    found = xmodel.explain(**inputs, target=5)
    wanted = lrp_fx.convert(pair.dense, rules=rules).explain(**inputs, target=5)
    tolerance = TOLERANCE.get(name, 1e-5)
    assert difference(found.output.logits, outputs) < tolerance
    assert difference(found.relevance["input_ids"], wanted.relevance["input_ids"]) < tolerance
    assert abs(float(found.ledger.balance)) < 1e-5


@pytest.mark.parametrize("name", ["int4, packed", "nf4"])
def test_packed_weights_stay_packed(name):
    """What the graph holds of such a layer has no data of its own."""
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    held = [p for n, p in xmodel.graph_module.named_parameters() if "_unpacked" in n]
    assert len(held) >= 14 and all(isinstance(p, Offloaded) for p in held)


@pytest.mark.parametrize("name", ["int4, packed", "nf4"])
def test_lowered(name):
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    eager = xmodel.explain(input_ids=ids()).relevance["input_ids"]
    assert difference(xmodel.lower()(input_ids=ids()).relevance["input_ids"], eager) < 1e-5


@pytest.mark.parametrize("name", ["int4, packed", "nf4"])
def test_files_hold_packed_weights_as_what_they_stand_for(name, tmp_path):
    xmodel = lrp_fx.convert(PAIRS[name]().model, input_ids=ids())
    graph, eager = xmodel.lower(target=0), xmodel.explain(input_ids=ids(), target=5).relevance["input_ids"]
    graph.save(tmp_path / "x.pt2")
    for made in (graph.compile(backend="eager"), lrp_fx.load(tmp_path / "x.pt2")):
        found = made(input_ids=ids(), target=5)
        assert difference(found.relevance["input_ids"], eager) < 1e-5


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
