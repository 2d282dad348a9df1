"""Regions of an exported graph that a context manager made, inlined: without gradients, or under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.capture.passes.autocast import mark_region, write_casts
from lrp_fx.capture.passes.detached import detach_results, take_noted_off
from lrp_fx.graph.copies import splice
from lrp_fx.graph.dead_code import drop_dead

_GRADIENTS = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"
_REGIONS = {_GRADIENTS: 1, _AUTOCAST: 4}  #: higher-order op -> position of its submodule


def inline_regions(graph_module: fx.GraphModule) -> None:
    """Inline the bodies of no-grad and autocast regions.

    Results of a region without gradients are detached (``passes.detached``); the casts of a region under autocast are
    written out (``passes.autocast``).
    """
    off = _inline(graph_module, False)
    detach_results(graph_module.graph, off | take_noted_off(graph_module.graph))
    write_casts(graph_module)
    drop_dead(graph_module.graph)


def _inline(graph_module: fx.GraphModule, off: bool) -> set[Node]:
    """Inline all regions; returns the nodes without gradients. ``off``: whether the graph itself has none."""
    without = {n for n in graph_module.graph.nodes if off and n.op == "call_function"}
    for node in list(graph_module.graph.nodes):
        name = node.target.name() if isinstance(node.target, torch._ops.HigherOrderOperator) else None
        if name not in _REGIONS:
            continue
        position = _REGIONS[name]
        region = node.args[position]
        body = graph_module.get_submodule(str(region.target))
        assert isinstance(body, fx.GraphModule)
        inner = _inline(body, not node.args[0] if name == _GRADIENTS else off)
        if name == _AUTOCAST:
            device, dtype, enabled = node.args[:3]
            mark_region(body.graph.nodes, device, dtype if enabled else None)
        without -= {node, *node.users}
        copies = _splice(graph_module, node, body, list(node.args[position + 1 :]))
        if not region.users:  # in the body of another region it would be read as a constant
            graph_module.graph.erase_node(region)
        without |= {copies[n] for n in inner if n in copies}
    return without


def _splice(owner: fx.GraphModule, call: Node, body: fx.GraphModule, arguments: list[Any]) -> dict[Node, Node]:
    result, copies = splice(owner, body, arguments, call)
    for user in list(call.users):
        user.replace_all_uses_with(result[user.args[1]])
        owner.graph.erase_node(user)
    owner.graph.erase_node(call)
    return copies
