"""Accounts of the steps of a loop: one for each node of a step's graph, of all the steps that it ran.

A step treats samples alike, each a row of its tensors. So what a node was given and what came back to it, step after
step, is what it would have been given at once for so many more samples: the account of all steps is that of one call
with their rows below one another, and is booked as such.
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
    """Everything seen at one node of one step; amounts are left to the account of all steps.

    Attributes:
        watched: its floating output tensors, by position.
        arrived_at: the cotangent of each, where one came back.
        received: operands, and what the rule passed to each.
    """

    watched: dict[int, Tensor] = field(default_factory=dict)
    arrived_at: dict[int, Tensor] = field(default_factory=dict)
    received: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def watch(self, output: Tensor, position: int) -> None:
        """Note an output to which something may come back."""
        self.watched[position] = output

    def arrive(self, output: Tensor, position: int, cotangent: Tensor | None) -> None:
        """Record the total cotangent of one output."""
        if cotangent is not None:
            self.arrived_at[position] = cotangent.detach()

    def receive(self, operand: Tensor, cotangent: Tensor | None) -> None:
        """Record what the rule passed to one operand."""
        if cotangent is not None:
            self.received.append((operand.detach(), cotangent.detach()))


def of_all_steps(accounts: Sequence[StepAccount]) -> Account:
    """The account of a node over the steps that its graph ran."""
    first = accounts[0]
    result = Account(first.node, feeds_zeros=first.feeds_zeros)
    result.arguments, result.post, result.shares, runs = _below(
        [(a.arguments, a.post, a.shares, [(run.args, run.kwargs) for run in a.runs]) for a in accounts]
    )
    result.runs = [run._replace(args=args, kwargs=kwargs) for run, (args, kwargs) in zip(first.runs, runs, strict=True)]
    for position in first.watched:
        if any(position in a.arrived_at for a in accounts):
            outputs = [a.watched[position] for a in accounts]
            back = [a.arrived_at.get(position, torch.zeros_like(y)) for a, y in zip(accounts, outputs, strict=True)]
            result.arrive(_rows(outputs), position, _rows(back))
    pairs = [pair for a in accounts for pair in a.received]
    if pairs:
        operand, cotangent = (torch.cat([tensor.flatten() for tensor in column]) for column in zip(*pairs, strict=True))
        result.receive(operand, cotangent)
    return result


def _below(trees: Sequence[Any]) -> Any:
    """Trees of one structure with the rows of their tensors below one another."""
    flat = [pytree.tree_leaves(tree) for tree in trees]
    leaves = [_rows(column) if isinstance(column[0], Tensor) else column[0] for column in zip(*flat, strict=True)]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(trees[0]))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """Rows below one another; a tensor that is the same in all steps is that tensor."""
    places = {(t.data_ptr(), t.shape, t.stride()) for t in tensors}
    return tensors[0].detach() if len(places) == 1 else torch.cat([t.detach() for t in tensors])
