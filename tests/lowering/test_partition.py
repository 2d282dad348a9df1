"""Kept or computed again: one graph, the same numbers, less between forward and relevance."""

import operator

import torch
from torch.fx.experimental.proxy_tensor import make_fx

import lrp_fx
from lrp_fx.lowering.partition import min_cut

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
    made, outputs = min_cut(traced, {"target": target, "relevance": {"x": relevance}})
    assert [n.name for n in made.graph.find_nodes(op="placeholder")] == ["x_1"]
    assert len(made.graph.find_nodes(op="call_function", target=aten.cos.default)) > once
    found = dict(zip(made.graph.output_node().args[0], made(x), strict=True))
    wanted = sweep(x, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(found[outputs["target"]], wanted[0])
    torch.testing.assert_close(found[outputs["relevance"]["x"]], wanted[1])


class Gated(torch.nn.Module):
    """Three times the same gated layer."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.gate, self.up, self.down = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for _ in range(3):
            y = self.norm(x)
            x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        return x


def test_layers_keep_products_and_statistics_and_nothing_that_follows_from_them():
    graph = lrp_fx.convert(Gated().eval(), torch.randn(2, 8), rules="attnlrp").lower(target=0).graph_module.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    turn = order[graph.output_node().args[0]["target"]]
    crossing = [n for n in order if order[n] <= turn and any(order[u] > turn and u.op != "output" for u in n.users)]
    chosen = {aten.index.Tensor, aten.arange.default, aten.remainder.Scalar}  # the target's row of the last layer
    kept = [n.target for n in crossing if n.op == "call_function" and n.target not in {aten.t.default, *chosen}]
    assert set(kept) <= {aten.addmm.default, operator.getitem, aten.sym_size.int}
    taken = [n for n in crossing if n.target is operator.getitem]
    assert {(n.args[0].target, n.args[1]) for n in taken} == {(aten.native_layer_norm.default, 2)}
    assert kept.count(aten.addmm.default) == 6, "gate and up of every layer"
