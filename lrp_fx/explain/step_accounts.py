"""Accounts of loops: one account for each node of a step's graph, over all steps.

A step treats samples independently, one per row of its tensors. The values and cotangents of T steps therefore equal
those of one step on T times as many samples: concatenated over their rows, they form one account, booked as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.explain.account import Account


@dataclass
class StepAccount(Account):
    """Account of one node in one step, with its tensors in place of amounts.

    Attributes:
        watched: position -> floating output tensor.
        arrived_at: position -> cotangent, for outputs that got one.
        received: (operand, cotangent that the rule passed to it).
    """

    watched: dict[int, Tensor] = field(default_factory=dict)
    arrived_at: dict[int, Tensor] = field(default_factory=dict)
    received: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def watch(self, output: Tensor, position: int) -> None:
        """Store an output that may get a cotangent."""
        self.watched[position] = output

    def arrive(self, output: Tensor, position: int, cotangent: Tensor | None) -> None:
        """Record the total cotangent of one output; None where it has none."""
        if cotangent is not None:
            self.arrived_at[position] = cotangent.detach()

    def receive(self, operand: Tensor, cotangent: Tensor | None) -> None:
        """Record the cotangent that the rule passed to one operand."""
        if cotangent is not None:
            self.received.append((operand.detach(), cotangent.detach()))


def of_all_steps(accounts: Sequence[StepAccount]) -> Account:
    """The account of a node over all steps of its loop."""
    first = accounts[0]
    result = Account(first.node, feeds_zeros=first.feeds_zeros)
    result.arguments, result.post, result.shares, runs = _concatenated(
        [(a.arguments, a.post, a.shares, [(run.args, run.kwargs) for run in a.runs]) for a in accounts]
    )
    result.runs = [run._replace(args=args, kwargs=kwargs) for run, (args, kwargs) in zip(first.runs, runs, strict=True)]
    for position in first.watched:
        if any(position in a.arrived_at for a in accounts):
            outputs = [a.watched[position] for a in accounts]
            cotangents = [
                a.arrived_at.get(position, torch.zeros_like(y)) for a, y in zip(accounts, outputs, strict=True)
            ]
            result.arrive(torch.cat(outputs), position, torch.cat(cotangents))  # steps may share one cotangent
    pairs = [pair for a in accounts for pair in a.received]
    if pairs:
        operand, cotangent = (torch.cat([tensor.flatten() for tensor in column]) for column in zip(*pairs, strict=True))
        result.receive(operand, cotangent)
    return result


def _concatenated(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one tree, with the rows of their tensors concatenated."""
    flat = [pytree.tree_leaves(tree) for tree in trees]
    leaves = [_rows(column) if isinstance(column[0], Tensor) else column[0] for column in zip(*flat, strict=True)]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(trees[0]))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenation over the rows; a tensor shared by all steps (a weight) is returned as it is."""
    memory = {(t.data_ptr(), t.shape, t.stride()) for t in tensors}
    return tensors[0].detach() if len(memory) == 1 else torch.cat([t.detach() for t in tensors])
