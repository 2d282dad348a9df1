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
from lrp_fx.rewrite.layer_runs import ENTERS
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
    where = rewritten.results | _of_folded_layers(rewritten)
    inside = [at.get(n) or copies[where[n]] for n in latents]
    end = graph.output_node()
    end.args = ((end.args[0], points, inside),)
    share_heads(graph, rewritten.plan.facts.ops)
    drop_whole_slices(graph)
    return lazy_module(rewritten.graph_module, graph, "TappedGraph")


def _of_folded_layers(rewritten: Rewritten) -> dict[Node, Node]:
    """Captured node -> rewritten node that has its relevance, where a rule on parts folds a batch norm into a layer.

    The runs of the layer pass by what is inside. The output of the layer has the relevance of the batch norm behind it;
    a batch norm and a ReLU in front of the layer have that of the tensor that enters the runs in their place.
    """
    decisions, facts, results = rewritten.plan.decisions, rewritten.plan.facts, rewritten.results
    folded = facts.folded.items()
    places = {layer: results[n] for n, layer in folded if n in decisions and decisions[n].entry.on_parts}
    entering = {n.meta[ENTERS]: n for n in rewritten.graph_module.graph.nodes if ENTERS in n.meta}
    for layer, norm in facts.thresholds.items():
        enters = entering.get(rewritten.copies[norm].name)
        relu = facts.operands[layer][facts.layers[layer].input]
        places |= {} if enters is None else {norm: enters, relu: enters}
    return places


def at_chosen_positions(tapped: fx.GraphModule, ops: OpTable) -> fx.GraphModule:
    """A tapped graph that computes only the positions which the model itself selects (a class token, the last one)."""
    if not may_move(tapped.graph, ops):
        return tapped
    graph, _ = copy_graph(tapped.graph)
    graph.owning_module = tapped  # (dead-code elimination needs the submodules)
    behind_selection(graph, ops)
    return lazy_module(tapped, graph, "SweptGraph")
