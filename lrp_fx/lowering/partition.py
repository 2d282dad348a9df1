"""What the way back needs of the way forward: kept, or computed again, by the cheaper cut (PyTorch's own partitioner).

One graph has no boundary between forward and relevance: everything is kept from where it is computed to where it is
last read. The partitioner of AOTAutograd finds the smallest set of values to keep; from these the others (rotated
queries, masks, statistics, slopes) follow by cheap operators. Its two halves are then one graph again.
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

_SEED = "tangents_seed"  #: the partitioner knows the inputs of the way back by "tangents" in their names


def keep_least(traced: fx.GraphModule, outputs: Any) -> tuple[fx.GraphModule, Any]:
    """Keep the smallest set of values between forward and relevance, and compute the others again.

    Args:
        traced: a functional graph; its last placeholder is the seed of the backward sweep, which is one.
        outputs: nested dicts and lists of its nodes, all that it returns; the explained values are its "target".

    Returns:
        the graph without the seed among its inputs, and the same structure of its nodes.
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
    known = {node.name: graph.node_copy(node) for node in inputs}
    given = dict(zip(forth, _append(graph, forward, known, late), strict=False))  # (what is kept follows)
    # (a constant would do, but Inductor takes no constant where the choice of a class scatters the seed)
    known[_SEED] = graph.call_function(torch.ops.aten.sum.default, (given[outputs["target"]],))
    known[_SEED].meta["val"] = seed.meta["val"]
    known[_SEED] = graph.call_function(torch.ops.aten.ones_like.default, (known[_SEED],))
    known[_SEED].meta["val"] = seed.meta["val"]
    given |= zip(back, _append(graph, backward, known), strict=True)
    found = [given[node] for node in flat]
    graph.output(tuple(found))
    return fx.GraphModule(traced, graph), pytree.tree_unflatten(found, structure)


def _append(graph: fx.Graph, half: fx.GraphModule, known: dict[str, Node], late: Container[str] = ()) -> list[Node]:
    """Append a half, whose inputs are ``known`` by name; its own nodes are from then on. Returns what it returns.

    What only the way back asks for is ``late`` in the trace. It goes where its operands are: layers stay alike.
    """
    for node in half.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        operands = [known[n.name] for n in node.all_input_nodes]
        place = graph.inserting_after(max(operands)) if node.name in late and operands else contextlib.nullcontext()
        with place:
            known[node.name] = graph.node_copy(node, lambda n: known[n.name])
    returned: Any = half.graph.output_node().args[0]
    return [known[node.name] for node in returned]
