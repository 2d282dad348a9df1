"""Checkpointing of repeated blocks: the backward pass runs them again instead of storing their values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from lrp_fx.explain import Sweeper
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.loop import Loop
from lrp_fx.lowering.blocks.find import find_blocks, folded


class Checkpointed(torch.nn.Module):
    """Stores only the inputs of its body (Chen et al. 2016, arXiv:1604.06174)."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Any) -> Any:
        """The body's outputs."""
        return checkpoint(self.body, *inputs, use_reentrant=False, preserve_rng_state=False)


def low_memory(sweeper: Sweeper) -> Sweeper:
    """The same sweep with every repeated block and every step of a loop checkpointed.

    N layers store N block inputs, T steps store T states, not all values of each.
    """
    swept = _with_loops_checkpointed(sweeper.swept)
    blocks = [block for stack in find_blocks(swept.graph) for block in stack]
    return replace(sweeper, tapped=folded(swept, blocks, Checkpointed))


def _with_loops_checkpointed(swept: fx.GraphModule) -> fx.GraphModule:
    graph, _ = copy_graph(swept.graph)
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            node.target = replace(node.target, checkpointed=True)
    return fx.GraphModule(swept, graph, class_name="SweptGraph")
