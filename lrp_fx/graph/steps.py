"""Steps of a recurrence: a loop over all of them, and the first of them written out in a captured graph.

A captured graph has one operator for a recurrence of any number of steps. Beside it the first :data:`SHOWN` steps are
written out, and :func:`shown` joins both: its value is the result of the operator, and analysis sees a recurrence of
that many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]  #: of a layer: (h,) or (h, c)

#: number of written-out steps: the first and the last may differ, those in between must be alike
SHOWN = 4
STEP = "lrp_step"  #: meta key of a node of a written-out step: a :class:`Step`


class Step(NamedTuple):
    """The place of a node in a written-out step.

    Attributes:
        operator: name of the recurrence's node.
        number: number of the step in the order of the run, from 0.
        carried: indices of the node in the next state.
    """

    operator: str
    number: int
    carried: tuple[int, ...] = ()


def step_of(x: Tensor, number: int) -> Tensor:
    """The rows of one step of (T, B, F) steps; a negative number counts from the last step."""
    return x.select(0, number)


def shown(value: Tensor, steps: list[Tensor]) -> Tensor:
    """``value``, the result of all steps; ``steps`` are the results of the written-out ones."""
    return value


def run_steps(
    xs: Sequence[Tensor],
    sizes: Tensor | None,
    state: State,
    advance: Callable[[int, tuple[Tensor, ...], State], State],
    backwards: bool,
    outputs: int = 1,
) -> tuple[list[Tensor], State]:
    """Run all steps in order.

    Args:
        xs: tensors of (T, ...).
        sizes: (T,) number of samples with each step, which are the first ones; None if all samples have all steps. The
            state of other samples does not change, and their outputs are 0.
        state: the first state, a row for each sample.
        advance: (number of the step in the order of the run, its rows, state) -> next state.
        backwards: begin with the last step.
        outputs: number of tensors of the state that are returned for every step, the first ones.

    Returns:
        (T, ...) the first tensors of every state; the last state.
    """
    rows = list(zip(*(x.unbind(0) for x in xs), strict=True))
    order = range(len(rows) - 1, -1, -1) if backwards else range(len(rows))
    there = None if sizes is None else present(sizes, xs[0].shape[1], xs[0].device).unsqueeze(-1).unbind(0)
    results: list[State] = []
    for number, place in enumerate(order):
        new = advance(number, rows[place], state)
        if there is None:
            state = new
            results.append(new[:outputs])
        else:
            state = tuple(torch.where(there[place], after, before) for after, before in zip(new, state, strict=True))
            results.append(tuple(torch.where(there[place], y, 0.0) for y in new[:outputs]))
    return [torch.stack(ys) for ys in zip(*(results[::-1] if backwards else results), strict=True)], state


def present(sizes: Tensor, samples: int, device: torch.device) -> Tensor:
    """(T, B): whether a sample has a step, given the number of samples with each step."""
    return (torch.arange(samples, device=sizes.device) < sizes[:, None]).to(device)
