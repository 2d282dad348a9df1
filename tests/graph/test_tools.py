"""Small tools on graphs, each of which several passes use."""

import pickle

import pytest
import torch
from torch import fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lrp_fx.errors import LatentError, first_line, type_and_line
from lrp_fx.graph.attribute_paths import attribute, readable
from lrp_fx.graph.copies import splice
from lrp_fx.graph.dimensions import example_size, same_sizes
from lrp_fx.graph.reach import from_inputs
from lrp_fx.graph.values import tensors_in
from lrp_fx.results import Attribution, no_ledger

aten = torch.ops.aten


class Body(nn.Module):
    """Two inputs, a constant of its own."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x, factor):
        return (x * factor + self.offset, x - 1)


class Owner(nn.Module):
    def forward(self, x):
        return torch.relu(x)


def test_a_graph_is_spliced_into_another():
    owner, body = fx.symbolic_trace(Owner()), fx.symbolic_trace(Body())
    (relu,) = (n for n in owner.graph.nodes if n.op == "call_function")
    result, copies = splice(owner, body, [relu, 3.0], owner.graph.output_node())
    again, _ = splice(owner, body, [result[1], 2.0], owner.graph.output_node())
    owner.graph.output_node().args = ((result[0], *again),)
    owner.graph.lint()
    owner.recompile()
    x = torch.tensor([-1.0, 5.0])
    first, second = Body()(x.relu(), 3.0), Body()(x.relu() - 1, 2.0)
    for found, wanted in zip(owner(x), (first[0], *second), strict=True):
        assert torch.equal(found, wanted)
    assert all(copy.graph is owner.graph for copy in copies.values()) and len(copies) == 4
    held = {n.target for n in owner.graph.nodes if n.op == "get_attr"}
    assert len(held) == 2  # each splice brings its own, under a name of the owner's


def test_inputs_of_a_spliced_graph_have_to_be_given():
    owner, body = fx.symbolic_trace(Owner()), fx.symbolic_trace(Body())
    with pytest.raises(ValueError, match="shorter"):
        splice(owner, body, [1.0], owner.graph.output_node())


def test_what_depends_on_an_input_is_told_from_constants():
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    scaled = graph.call_function(aten.mul.Tensor, (weight, 2))
    product = graph.call_function(aten.mul.Tensor, (x, scaled))
    made = graph.call_function(aten.ones.default, ([2],))
    end = graph.output((product, made))
    assert from_inputs(graph) == {x, product, end}


def test_an_attribute_may_be_named_like_a_keyword():
    root = nn.Module()
    root.add_module("in", nn.Linear(2, 2))
    graph = fx.Graph()
    assert attribute(root, graph.get_attr(readable("in.weight"))) is getattr(root, "in").weight


def test_a_size_that_is_a_formula_has_the_value_of_the_example():
    env, context = ShapeEnv(), StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    x = FakeTensorMode(shape_env=env).from_tensor(
        torch.ones(7, 2), source=ConstantSource("x"), symbolic_context=context
    )
    told = env.create_unbacked_symint()
    assert isinstance(x.shape[0], torch.SymInt) and example_size(x.shape[0] * 2) == 14 and example_size(2) == 2
    with pytest.raises(TypeError):
        example_size(told)


def test_errors_are_told_in_a_line():
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"
    assert type_and_line(ValueError("one\ntwo")) == "ValueError: one" and type_and_line(KeyError()) == "KeyError"


def test_sizes_are_compared_and_tensors_found():
    assert same_sizes(torch.Size([2, 3]), [2, 3]) and not same_sizes([2], [2, 3])
    a, b = torch.ones(1), torch.ones(2)
    assert [t is u for t, u in zip(tensors_in({"x": [a, 3], "y": (b, None)}), (a, b), strict=True)] == [True, True]


def test_an_attribution_without_a_ledger_says_why_in_another_process_too():
    none = no_ledger("saved, so no ledger")
    made = Attribution(
        relevance={"x": torch.ones(1)}, latents={}, target=torch.ones(1), ruleset="attnlrp", _account=none
    )
    for attribution in (made, pickle.loads(pickle.dumps(made))):
        with pytest.raises(LatentError, match="saved, so no ledger"):
            attribution.ledger  # noqa: B018
