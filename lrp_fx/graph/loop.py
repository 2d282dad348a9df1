"""A loop over the steps of a recurrence, as one call in a rewritten graph; each step runs a graph.

The first and the last steps may have other graphs than the middle ones: the state before the first step is a constant,
and no step follows the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx import Node
from torch.utils.checkpoint import checkpoint

from lrp_fx.graph.steps import State, run_steps

Run = Callable[["Body", int, tuple[Any, ...]], State]  #: (body, number of the step, inputs) -> next state


@dataclass(frozen=True, eq=False)
class Body:
    """A step as a graph.

    Attributes:
        graph_module: (its rows, *state, *constants) -> next state.
        constants: its range of the loop's constants.
    """

    graph_module: fx.GraphModule
    constants: slice


def _run_body(body: Body, number: int, inputs: tuple[Any, ...]) -> State:
    return body.graph_module.forward(*inputs)  # type: ignore[no-any-return]


def _run_again(body: Body, number: int, inputs: tuple[Any, ...]) -> State:
    """A step under checkpointing: only its inputs are saved (Chen et al. 2016, arXiv:1604.06174)."""
    return checkpoint(body.graph_module.forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Loop:
    """All steps in order: (x, sizes, *first state, *constants) -> [all h, *last state].

    Attributes:
        front: graphs of the first steps.
        middle: the graph of all others.
        back: graphs of the last steps.
        states: number of tensors in the state.
        backwards: whether it begins with the last step of x.
        checkpointed: whether steps are recomputed in the backward, from their saved inputs.
    """

    front: tuple[Body, ...]
    middle: Body
    back: tuple[Body, ...]
    states: int
    backwards: bool
    checkpointed: bool = False

    __name__ = "loop"  # the name in generated code

    @property
    def bodies(self) -> tuple[Body, ...]:
        """All graphs of steps."""
        return (*self.front, self.middle, *self.back)

    def body(self, number: int, count: int) -> Body:
        """The graph of step ``number`` of ``count``."""
        if number < len(self.front):
            return self.front[number]
        left = count - number
        return self.back[-left] if left <= len(self.back) else self.middle

    def __call__(self, x: Tensor, sizes: Tensor | None, *operands: Tensor) -> list[Tensor]:
        """Run all steps."""
        return self.run(_run_again if self.checkpointed else _run_body, x, sizes, *operands)

    def run(self, run: Run, x: Tensor, sizes: Tensor | None, *operands: Tensor) -> list[Tensor]:
        """Run all steps, each by ``run``."""
        state, constants = operands[: self.states], operands[self.states :]
        count = (x if sizes is None else sizes).shape[0]

        def advance(number: int, row: Tensor, current: State) -> State:
            body = self.body(number, count)
            return tuple(run(body, number, (row, *current, *constants[body.constants])))

        y, last = run_steps(x, sizes, state, advance, self.backwards)
        return [y, *last]


def with_steps(graph: fx.Graph) -> Iterator[Node]:
    """The nodes of a graph, with those of the steps of its loops."""
    for node in graph.nodes:
        for body in node.target.bodies if isinstance(node.target, Loop) else ():
            yield from body.graph_module.graph.nodes
        yield node


def has_loops(graph: fx.Graph) -> bool:
    """Whether a graph runs steps in a loop."""
    return any(isinstance(node.target, Loop) for node in graph.nodes)
