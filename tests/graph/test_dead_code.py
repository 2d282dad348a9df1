"""Nodes that nobody reads are removed as by PyTorch's own pass, in graphs inside of a graph, too."""

from __future__ import annotations

import torch
from torch import fx, nn

from lrp_fx.graph.dead_code import drop_dead


def unread(inner: bool) -> fx.GraphModule:
    """A graph with a chain that nobody reads, an effect, and perhaps a graph inside that has such a chain."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.aten.relu.default, (graph.call_function(torch.ops.aten.neg.default, (x,)),))
    graph.call_function(torch.ops.aten.add_.Tensor, (x, 1))
    read = graph.call_function(torch.ops.aten.exp.default, (x,))
    module = nn.Module()
    if inner:
        module.inner = unread(False)
        read = graph.call_function(torch.cond, (True, graph.get_attr("inner"), graph.get_attr("inner"), (read,)))
    graph.output(read)
    return fx.GraphModule(module, graph)


def test_what_nobody_reads_is_removed() -> None:
    for inner in (False, True):
        ours, pytorchs = unread(inner), unread(inner)
        before = len(ours.graph.nodes)
        drop_dead(ours.graph)
        pytorchs.graph.eliminate_dead_code()
        assert str(ours.graph) == str(pytorchs.graph)
        assert len(ours.graph.nodes) == before - 2
        if inner:
            assert str(ours.inner.graph) == str(pytorchs.inner.graph) != str(unread(False).graph)
