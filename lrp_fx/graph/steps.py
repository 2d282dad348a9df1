"""Steps of a recurrence: how they run one after the other, and how the first of them are shown in a captured graph.

A captured graph holds a recurrence as one operator, of any number of steps. What a step is, is shown beside it: the
first :data:`SHOWN` steps are written out, and :func:`shown` stands for what all of them compute. Whoever runs the graph
gets what the operator computed; whoever looks at it sees a model of so many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]  #: of a layer: (h,) or (h, c)

#: how many steps are written out: those at the ends may differ from those in between, which have to be alike
SHOWN = 4
STEP = "lrp_step"  #: meta key of a node of a step that is written out: a :class:`Step`


class Step(NamedTuple):
    """Where a node of a written-out step belongs.

    Attributes:
        operator: name of the node whose steps are shown.
        number: of the step, from 0, in the order in which they run.
        carried: which tensors of the next state the node is.
    """

    operator: str
    number: int
    carried: tuple[int, ...] = ()


def step_of(x: Tensor, number: int) -> Tensor:
    """What one step reads of (T, B, F) steps; from behind, where the number is negative."""
    return x.select(0, number)


def shown(value: Tensor, steps: list[Tensor]) -> Tensor:
    """``value``, which all steps together computed, of which ``steps`` are written out."""
    return value


def run_steps(
    x: Tensor, sizes: Tensor | None, state: State, advance: Callable[[int, Tensor, State], State], backwards: bool
) -> tuple[Tensor, State]:
    """All steps, one after the other.

    Args:
        x: (T, B, F).
        sizes: (T,) how many samples, the first of them, have a step; None where all have. The state of others stays as
            it is, and their outputs are 0.
        state: the first state, a row for each sample.
        advance: (number of the step in the order of the run, its rows, state) -> next state.
        backwards: begin with the last step.

    Returns:
        (T, B, H) the first tensor of every state; the last state.
    """
    rows = x.unbind(0)
    order = range(len(rows) - 1, -1, -1) if backwards else range(len(rows))
    there = None if sizes is None else present(sizes, x.shape[1], x.device).unsqueeze(-1).unbind(0)
    outputs: list[Tensor] = []
    for number, place in enumerate(order):
        new = advance(number, rows[place], state)
        if there is None:
            state = new
            outputs.append(new[0])
        else:
            state = tuple(torch.where(there[place], after, before) for after, before in zip(new, state, strict=True))
            outputs.append(torch.where(there[place], new[0], 0.0))
    return torch.stack(outputs[::-1] if backwards else outputs), state


def present(sizes: Tensor, samples: int, device: torch.device) -> Tensor:
    """(T, B) whether a sample has a step; ``sizes`` say of each step how many do."""
    return (torch.arange(samples, device=sizes.device) < sizes[:, None]).to(device)
