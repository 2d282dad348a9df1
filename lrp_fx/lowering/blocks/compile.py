"""Compile once per block: the repeated blocks of a relevance graph as regions that ``torch.compile`` compiles once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.compiler import nested_compile_region

from lrp_fx.graph.copies import copy_graph
from lrp_fx.lowering.blocks.find import find_blocks, folded
from lrp_fx.operators.schema import is_view

aten = torch.ops.aten

_LEAST = 12  #: smallest number of operators of a block that becomes a region
_MANY = 2**20  #: reuse entries of a region: practically no limit
ALIKE = 4  #: number of blocks in a stack from which on they are compiled once without being asked for


class Region(torch.nn.Module):
    """A body that is compiled once for all its calls."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

        @nested_compile_region(max_reuse_entries=_MANY)
        def run(*inputs: Any) -> Any:
            return body(*inputs)

        self._run = run

    def forward(self, *inputs: Any) -> Any:
        """The body's outputs."""
        return self._run(*inputs)


def once_per_block(graph_module: fx.GraphModule, alike: int = 2) -> fx.GraphModule:
    """The same graph with repeated blocks, forward and backward, as calls of one region per kind of block.

    Args:
        graph_module: the graph; it stays as it is if it has no such stack.
        alike: smallest number of blocks in a stack that become calls of a region.
    """
    graph, _ = copy_graph(graph_module.graph)
    sink_views(graph)
    stacks = [stack for stack in find_blocks(graph, _LEAST, constants=True) if len(stack) >= alike]
    if not stacks:
        return graph_module
    sunk = fx.GraphModule(graph_module, graph, class_name="RelevanceGraph")
    return folded(sunk, [block for stack in stacks for block in stack], Region)


def sink_views(graph: fx.Graph) -> None:
    """Copy each view to its users, so that no region returns two views of one value, or a view of its input."""
    for node in reversed(list(graph.nodes)):
        if not is_view(node) and node.target is not aten._unsafe_view.default:
            continue
        for user in list(node.users):
            if user.op == "output":
                continue
            with graph.inserting_before(user):
                copy = graph.node_copy(node)
            user.replace_input_with(node, copy)
        if not node.users:
            graph.erase_node(node)
    graph.lint()
