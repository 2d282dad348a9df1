"""Steps of a recurrence: how they run one after the other, and how the first of them are shown in a captured graph.

A captured graph holds a recurrence as one operator, of any number of steps. What a step is, is shown beside it: the
first :data:`SHOWN` steps are written out, and :func:`shown` stands for what all of them compute. Whoever runs the graph
gets what the operator computed; whoever looks at it sees a model of so many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def step_of(x: Tensor, number: int, like: Tensor | None = None) -> Tensor:
    """What one step reads.

    Args:
        x: (T, B, F) padded steps, or (N, F) rows of a packed sequence.
        number: of the step; from behind, where it is negative.
        like: of a packed sequence, a tensor with a row for each sample: as many rows stand for the step.
    """
    return x.select(0, number) if like is None else x.narrow(0, 0, like.shape[0])


def shown(value: Tensor, steps: list[Tensor]) -> Tensor:
    """``value``, which all steps together computed, of which ``steps`` are written out."""
    return value


def run_steps(
    x: Tensor, sizes: Tensor | None, state: State, advance: Callable[[int, Tensor, State], State], backwards: bool
) -> tuple[Tensor, State]:
    """All steps, one after the other.

    Rows of a packed sequence may become fewer from step to step (samples end), backwards more (samples begin).

    Args:
        x: (T, B, F), or (N, F) rows of a packed sequence, those of a step together, longest samples first.
        sizes: (T,) rows of each step of a packed sequence; None for padded steps.
        state: the first state, a row for each sample.
        advance: (number of the step in the order of the run, its rows, state) -> next state.
        backwards: begin with the last step.

    Returns:
        The first tensor of every state, in the layout of x; the last state of every sample.
    """
    rows = list(x.unbind(0) if sizes is None else x.split(sizes.tolist()))
    order = range(len(rows) - 1, -1, -1) if backwards else range(len(rows))
    active = state[0].shape[0] if sizes is None else rows[order[0]].shape[0]
    current = state if sizes is None else tuple(s[:active] for s in state)
    outputs: list[Tensor] = []
    finished: list[State] = []
    for number, place in enumerate(order):
        row = rows[place]
        size = active if sizes is None else row.shape[0]
        if size < active:
            finished.append(tuple(s[size:] for s in current))
            current = tuple(s[:size] for s in current)
        elif size > active:
            current = tuple(torch.cat([s, first[active:size]]) for s, first in zip(current, state, strict=True))
        active = size
        current = advance(number, row, current)
        outputs.append(current[0])
    last = tuple(torch.cat([s, *(f[k] for f in reversed(finished))]) if finished else s for k, s in enumerate(current))
    return joined(outputs[::-1] if backwards else outputs, sizes), last


def joined(outputs: Sequence[Tensor], sizes: Tensor | None) -> Tensor:
    """Steps in the layout that they were read in."""
    return torch.stack(list(outputs)) if sizes is None else torch.cat(list(outputs))
