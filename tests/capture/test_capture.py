"""Capture: functional graphs, precision islands, conventions, specialised sizes."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build
from torch import nn

import lrp_fx
from lrp_fx.capture import capture
from lrp_fx.graph.exact_value import exact_value
from lrp_fx.operators.schema import is_mutating


class Simple(nn.Module):
    def forward(self, x):
        y = x * 2
        y.add_(1)
        return y.mul_(x)


class ThroughAView(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[:, 0] = 3.0
        return y * x


class Strided(nn.Module):
    def forward(self, x):
        buffer = torch.zeros(x.shape[0], 4, x.shape[1], dtype=x.dtype)
        buffer[:, 1] += x
        return buffer.transpose(1, 2).reshape(x.shape[0], -1)


@pytest.mark.parametrize("cls", [Simple, ThroughAView, Strided])
def test_in_place_operators_become_functional(cls):
    x = torch.randn(3, 5, dtype=torch.float64)
    captured = capture(cls(), (x,), {})
    assert not any(is_mutating(node) for node in captured.graph_module.graph.nodes)
    assert torch.equal(captured.graph_module(x), cls()(x))
    assert lrp_fx.convert(cls(), x).explain(x, target=lambda out: out.sum(-1)).ledger.balance < 1e-9


def test_no_grad_regions_are_inlined():
    class Frozen(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = x * 2
            return y + x

    x = torch.randn(2, 3, dtype=torch.float64)
    attribution = lrp_fx.convert(Frozen(), x).explain(x, target=0)
    torch.testing.assert_close(attribution.relevance["x"][:, 0], x[:, 0])
    through = lrp_fx.convert(Frozen(), x, detach="see-through").explain(x, target=0)
    torch.testing.assert_close(through.relevance["x"][:, 0], through.target)


def test_a_float32_island_keeps_its_values_and_loses_no_relevance():
    class Island(nn.Module):
        def forward(self, x):
            return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True))).to(x.dtype)

    x = torch.randn(3, 5, dtype=torch.float64)
    xmodel = lrp_fx.convert(Island(), x, rules="cp_lrp")
    assert torch.equal(xmodel(x), Island()(x))
    attribution = xmodel.explain(x, target=2)
    torch.testing.assert_close(attribution.relevance["x"].sum(-1), attribution.target, rtol=1e-12, atol=1e-15)
    assert any(n.target is exact_value for n in xmodel.graph_module.graph.nodes)


def test_precisions_that_an_island_names_are_double_in_its_twin():
    """The softmax is asked to compute in single precision, as attention often is."""

    class Attended(nn.Module):
        def forward(self, x):
            weights = torch.softmax(x @ x.transpose(1, 2), -1, dtype=torch.float32)
            return (weights.to(x.dtype) @ x).sum(1)

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Attended(), x, rules="gradient")
    assert torch.equal(xmodel(x), Attended()(x))
    leaf = x.clone().requires_grad_()
    wide = torch.softmax(leaf @ leaf.transpose(1, 2), -1)
    rounded = torch.softmax(x @ x.transpose(1, 2), -1, dtype=torch.float32)
    ((wide * (rounded / wide).detach()) @ leaf).sum((0, 1))[1].backward()  # values are rounded, derivatives are not
    torch.testing.assert_close(xmodel.explain(x, target=1).relevance["x"], x * leaf.grad, rtol=1e-10, atol=1e-12)


def test_positional_keyword_and_nested_inputs_have_names():
    class Nested(nn.Module):
        def forward(self, first, batch, scale=1.0):
            return first * batch["a"] + batch["b"][0] * scale

    x = [torch.randn(2, 3) for _ in range(3)]
    attribution = lrp_fx.convert(Nested()).explain(x[0], batch={"a": x[1], "b": [x[2]]}, scale=2.0, target=0)
    assert set(attribution.relevance) == {"first", "batch['a']", "batch['b'][0]"}


def test_sizes_of_images_are_captured_and_a_new_size_recaptures():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    xmodel = lrp_fx.convert(model, torch.randn(1, 3, 8, 8))
    assert xmodel.current.captured.shapes.specialised == [(0, 1, 3), (0, 2, 8), (0, 3, 8)]
    assert xmodel.explain(torch.randn(5, 3, 8, 8)).relevance["input"].shape == (5, 3, 8, 8)
    assert len(xmodel.captures) == 1
    assert xmodel.explain(torch.randn(2, 3, 10, 9)).relevance["input"].shape == (2, 3, 10, 9)
    assert len(xmodel.captures) == 2


def test_a_fixed_size_names_the_line_of_the_model_that_fixed_it():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            x = x + 1
            return x * self.scale

    line = inspect.getsourcelines(Scaled.forward)[1] + 2
    (reason,) = lrp_fx.convert(Scaled(), torch.ones(2, 4)).report().specialised
    assert reason == f"x axis 1 is 4: the model computes with it at {__file__}:{line} in forward"


def test_no_weights_are_touched_on_the_meta_device():
    import transformers as tf
    from models import GQA

    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**GQA))
    xmodel = lrp_fx.convert(model, input_ids=torch.zeros(1, 8, dtype=torch.long, device="meta"))
    assert all(p.is_meta for p in xmodel.graph_module.parameters())
    assert "embed_tokens" in str(xmodel.report())


def test_caches_are_switched_off_by_the_capture():
    model, inputs = build("llama2")
    assert model.config.use_cache
    output = lrp_fx.convert(model, **inputs)(**inputs)
    assert output.past_key_values is None and model.config.use_cache


VIEWS = {
    "row": lambda t: t[1] if t.dim() > 1 and t.shape[0] > 1 else t,
    "rows": lambda t: t[1:],
    "every second": lambda t: t[..., ::2],
    "turned": lambda t: t.transpose(0, -1),
    "flat": lambda t: t.reshape(-1),
    "column": lambda t: t.unsqueeze(-1),
    "half": lambda t: t.chunk(2, -1)[0],
    "diagonal": lambda t: t.diagonal() if t.dim() > 1 else t,
    "last": lambda t: t.unbind(-1)[-1] if t.dim() > 1 else t,
    "permuted": lambda t: t.permute(*reversed(range(t.dim()))),
}
WRITES = {
    "add": lambda t, x: t.add_(x.sum()),
    "multiply": lambda t, x: t.mul_(x.mean()),
    "copy": lambda t, x: t.copy_(x.sum().expand(t.shape)),
    "set": lambda t, x: t.__setitem__((..., 0), x.max()),
    "fill": lambda t, x: t.fill_(0.5),
    "relu": lambda t, x: t.relu_(),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*VIEWS, *WRITES])), min_size=3, max_size=9))
def test_writes_through_any_views_are_the_model_s(program):
    """Random programs of views of views and writes into them, each view read again at the end."""

    class Model(nn.Module):
        def forward(self, x):
            tensors = [x * 2]
            for which, step in program:
                tensor = tensors[which % len(tensors)]
                if step in VIEWS:
                    tensors.append(VIEWS[step](tensor))
                elif tensor.numel():
                    WRITES[step](tensor, x)
            return sum(t.sin().sum() * (i + 1) for i, t in enumerate(tensors)).reshape(1)

    x = torch.randn(4, 3, 4, dtype=torch.float64)
    captured = capture(Model(), (x,), {}, dynamic=False, route="export")
    assert not any(is_mutating(node) for node in captured.graph_module.graph.nodes)
    assert torch.allclose(captured.graph_module(x), Model()(x), rtol=1e-12)
