"""Tap points in a rewritten graph: sources become leaves of autograd; sources and latents become outputs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

from torch import fx
from torch.fx import Node
from torch.fx.graph import CodeGen

from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.lazy_module import lazy_module
from lrp_fx.operators.table import OpTable
from lrp_fx.passes.hoist_slices import behind_selection, drop_whole_slices, may_move
from lrp_fx.passes.unrepeat_kv import share_heads
from lrp_fx.rewrite import Rewritten
from lrp_fx.rules.functions import source


def tap(rewritten: Rewritten, latents: Iterable[Node]) -> fx.GraphModule:
    """The rewritten graph as a function: flat inputs -> (output leaves, sources, latents).

    Args:
        rewritten: the graph.
        latents: captured nodes.
    """
    graph, copies = copy_graph(rewritten.graph_module.graph)
    graph._codegen = CodeGen()
    points = []
    for item in rewritten.plan.sources:
        node = copies[rewritten.copies[item.node]]
        with graph.inserting_after(node):
            point = graph.call_function(source, (node,))
        point.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(point, delete_user_cb=functools.partial(operator.is_not, point))
        points.append(point)
    at = {item.node: point for item, point in zip(rewritten.plan.sources, points, strict=True)}
    inside = [at.get(n) or copies[rewritten.results[n]] for n in latents]
    end = graph.output_node()
    end.args = ((end.args[0], points, inside),)
    share_heads(graph, rewritten.plan.facts.ops)
    drop_whole_slices(graph)
    return lazy_module(rewritten.graph_module, graph, "TappedGraph")


def at_chosen_positions(tapped: fx.GraphModule, ops: OpTable) -> fx.GraphModule:
    """A tapped graph that computes only the positions which the model itself selects (a class token, the last one)."""
    if not may_move(tapped.graph, ops):
        return tapped
    graph, _ = copy_graph(tapped.graph)
    graph.owning_module = tapped  # (dead-code elimination needs the submodules)
    behind_selection(graph, ops)
    return lazy_module(tapped, graph, "SweptGraph")
