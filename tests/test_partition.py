"""Kept or computed again: one graph, the same numbers, less between forward and relevance."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

import lrp_fx
from lrp_fx.lowering.partition import keep_least

aten = torch.ops.aten


def sweep(x, seed):
    """Forward and relevance of sum(cos(cos(x))), by hand."""
    inner = x.cos()
    target = inner.cos().sum(-1)
    cotangent = seed.expand_as(target)[:, None] * inner.sin() * x.sin()
    return [target, x * cotangent]


def test_cheap_values_are_computed_again_and_the_seed_is_one():
    x = torch.randn(3, 4, dtype=torch.float64)
    traced = make_fx(sweep, tracing_mode="fake")(x, torch.ones((), dtype=torch.float64))
    target, relevance = traced.graph.output_node().args[0]
    once = len(traced.graph.find_nodes(op="call_function", target=aten.cos.default))
    made, outputs = keep_least(traced, {"target": target, "relevance": {"x": relevance}})
    assert [n.name for n in made.graph.find_nodes(op="placeholder")] == ["x_1"]
    assert len(made.graph.find_nodes(op="call_function", target=aten.cos.default)) > once
    found = dict(zip(made.graph.output_node().args[0], made(x), strict=True))
    wanted = sweep(x, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(found[outputs["target"]], wanted[0])
    torch.testing.assert_close(found[outputs["relevance"]["x"]], wanted[1])


def test_layers_remember_less_than_they_compute():
    """Between a nonlinearity's forward and its relevance one value is kept, not its slope and its output, too."""
    layers = [torch.nn.Linear(8, 8), torch.nn.GELU()] * 3
    x = torch.randn(2, 8)
    graph = lrp_fx.convert(torch.nn.Sequential(*layers).eval(), x).lower(target=0).graph_module.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    products = [n for n in graph.nodes if n.target in (aten.addmm.default, aten.mm.default)]
    turn = order[products[2]]  # the last layer of the forward pass
    kept = {n for n in order if order[n] <= turn and any(order[u] > turn for u in n.users) and _wide(n)}
    assert len(kept) <= 3


def _wide(node):
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[0] != 8
