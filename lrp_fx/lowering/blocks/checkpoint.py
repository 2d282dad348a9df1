"""Checkpointing of repeated blocks: the backward pass runs them again instead of storing their values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lrp_fx.explain import Sweeper
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
    """The same sweep with every repeated block checkpointed: N layers store N block inputs, not all values of each."""
    blocks = [block for stack in find_blocks(sweeper.swept.graph) for block in stack]
    return replace(sweeper, tapped=folded(sweeper.swept, blocks, Checkpointed))
