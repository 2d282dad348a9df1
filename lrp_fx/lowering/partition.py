"""Min-cut partition of a joint graph: which forward values the backward pass saves, and which it recomputes.

A joint graph has no boundary between forward and backward: every value lives from its definition to its last use.
AOTAutograd's partitioner finds the smallest set of values to save; the others (rotated queries, masks, statistics,
slopes) are recomputed from these by cheap operators. The two halves are then joined into one graph again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container
from typing import Any

import torch
from torch import fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import Node
from torch.utils import _pytree as pytree

_SEED = "tangents_seed"  #: the partitioner recognises backward inputs by "tangents" in their names


def min_cut(traced: fx.GraphModule, outputs: Any) -> tuple[fx.GraphModule, Any]:
    """Save the smallest set of values between forward and backward, and recompute the others.

    Args:
        traced: a functional graph; its last placeholder is the seed of the backward sweep, the scalar 1.
        outputs: nested dicts and lists of all its output nodes; the explained values are under "target".

    Returns:
        the graph without the seed as an input, and its output nodes in the same structure.
    """
    *inputs, seed = traced.graph.find_nodes(op="placeholder")
    behind, late = {seed}, set()
    for node in traced.graph.nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        elif len(behind) > 1:
            late.add(node.name)
    flat, structure = pytree.tree_flatten(outputs)
    forth, back = ([n for n in flat if (n in behind) is side] for side in (False, True))
    traced.graph.output_node().args = ((*forth, *back),)
    seed._rename(_SEED)
    seed.target = _SEED
    forward, backward = min_cut_rematerialization_partition(traced, None, num_fwd_outputs=len(forth))

    graph = fx.Graph()
    nodes = {node.name: graph.node_copy(node) for node in inputs}
    outputs_of = dict(zip(forth, _append(graph, forward, nodes, late), strict=False))  # (saved values follow)
    # the seed as ones_like: Inductor fails on a constant that index_put scatters (the choice of a class)
    nodes[_SEED] = graph.call_function(torch.ops.aten.sum.default, (outputs_of[outputs["target"]],))
    nodes[_SEED].meta["val"] = seed.meta["val"]
    nodes[_SEED] = graph.call_function(torch.ops.aten.ones_like.default, (nodes[_SEED],))
    nodes[_SEED].meta["val"] = seed.meta["val"]
    outputs_of |= zip(back, _append(graph, backward, nodes), strict=True)
    results = [outputs_of[node] for node in flat]
    graph.output(tuple(results))
    return fx.GraphModule(traced, graph), pytree.tree_unflatten(results, structure)


def _append(graph: fx.Graph, half: fx.GraphModule, nodes: dict[str, Node], late: Container[str] = ()) -> list[Node]:
    """Append one half of the partition, and return its outputs.

    Args:
        graph: the graph that grows.
        half: forward or backward.
        nodes: those already in the graph, by name; those of this half are added to it.
        late: names of nodes that only the backward pass reads. They are placed behind their operands, so that repeated
            layers stay equal.
    """
    for node in half.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        operands = [nodes[n.name] for n in node.all_input_nodes]
        place = graph.inserting_after(max(operands)) if node.name in late and operands else contextlib.nullcontext()
        with place:
            nodes[node.name] = graph.node_copy(node, lambda n: nodes[n.name])
    returned: Any = half.graph.output_node().args[0]
    return [nodes[node.name] for node in returned]
