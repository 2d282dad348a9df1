"""A loop over the steps of a recurrence in a rewritten graph: one call, a graph for a step, as many steps as there are.

The first and the last steps may have graphs of their own: the state is a constant before the first step, and nothing
follows the last one.
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
        constants: which of the constants of the loop it reads.
    """

    graph_module: fx.GraphModule
    constants: slice


def _run_body(body: Body, number: int, inputs: tuple[Any, ...]) -> State:
    return body.graph_module.forward(*inputs)  # type: ignore[no-any-return]


def _run_again(body: Body, number: int, inputs: tuple[Any, ...]) -> State:
    """A step of which only the inputs are remembered (Chen et al. 2016, arXiv:1604.06174)."""
    return checkpoint(body.graph_module.forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Loop:
    """Steps one after the other: (x, sizes, *first state, *constants) -> [all h, *last state].

    Attributes:
        front: graphs of the first steps.
        middle: the graph of all others.
        back: graphs of the last steps.
        states: how many tensors the state has.
        backwards: whether it begins with the last step of x.
        checkpointed: whether steps are run again on the way back, and only their inputs are remembered.
    """

    front: tuple[Body, ...]
    middle: Body
    back: tuple[Body, ...]
    states: int
    backwards: bool
    checkpointed: bool = False

    __name__ = "loop"  # as generated code calls it

    @property
    def bodies(self) -> tuple[Body, ...]:
        """All graphs of steps."""
        return (*self.front, self.middle, *self.back)

    def body(self, number: int, count: int) -> Body:
        """The graph of one of so many steps."""
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
    """The nodes of a graph, those of the steps of its loops among them."""
    for node in graph.nodes:
        for body in node.target.bodies if isinstance(node.target, Loop) else ():
            yield from body.graph_module.graph.nodes
        yield node
