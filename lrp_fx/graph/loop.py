"""A loop over the steps of a recurrence, as one call in a rewritten graph; each step runs a graph.

The first and the last steps may have other graphs than the middle ones: the state before the first step is a constant,
and no step follows the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
        graph_module: (*its rows, *state, *constants) -> next state.
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
    """All steps in order: (*xs, sizes, *first state, *constants) -> [*outputs of all steps, *last state].

    Attributes:
        front: graphs of the first steps.
        middle: the graph of all others.
        back: graphs of the last steps.
        states: number of tensors in the state.
        backwards: whether it begins with the last step of x.
        inputs: number of tensors with a row for each step.
        outputs: number of tensors of the state that are returned for every step, the first ones.
        checkpointed: whether steps are recomputed in the backward, from their saved inputs.
    """

    front: tuple[Body, ...]
    middle: Body
    back: tuple[Body, ...]
    states: int
    backwards: bool
    inputs: int = 1
    outputs: int = 1
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

    def __call__(self, *operands: Any) -> list[Tensor]:
        """Run all steps."""
        return self.run(_run_again if self.checkpointed else _run_body, *operands)

    def run(self, run: Run, *operands: Any) -> list[Tensor]:
        """Run all steps, each by ``run``."""
        xs, sizes, rest = operands[: self.inputs], operands[self.inputs], operands[self.inputs + 1 :]
        state, constants = rest[: self.states], rest[self.states :]
        count = (xs[0] if sizes is None else sizes).shape[0]

        def advance(number: int, rows: tuple[Tensor, ...], current: State) -> State:
            body = self.body(number, count)
            return tuple(run(body, number, (*rows, *current, *constants[body.constants])))

        ys, last = run_steps(xs, sizes, state, advance, self.backwards, self.outputs)
        return [*ys, *last]


@dataclass(frozen=True, eq=False)
class CapturedLoop:
    """A loop of the model, in a captured graph: (x, state, constants) -> [*outputs of all steps, *last state].

    Its arguments are lists, passed by name. A node that calls it also has ``sizes=None``.

    Attributes:
        body: the graph of a step: (*its rows, *state, *constants) -> next state.
        outputs: number of tensors of the state that are returned for every step, the first ones.
    """

    body: fx.GraphModule
    outputs: int

    __name__ = "captured_loop"

    def __call__(
        self, *, x: Sequence[Tensor], state: Sequence[Tensor], constants: Sequence[Any], sizes: None = None
    ) -> list[Tensor]:
        """Run all steps."""

        def advance(_: int, rows: tuple[Tensor, ...], current: State) -> State:
            return tuple(self.body.forward(*rows, *current, *constants))

        ys, last = run_steps(x, sizes, tuple(state), advance, False, self.outputs)
        return [*ys, *last]

    def reads_state(self, inputs: int) -> list[bool]:
        """For each tensor of the state, whether a step reads it; ``inputs``: number of the tensors with rows."""
        states = len(self.body.graph.output_node().args[0])  # type: ignore[arg-type]
        reads = self.body.graph.find_nodes(op="placeholder")[inputs : inputs + states]
        return [bool(node.users) for node in reads]


def like_all_steps(
    step: Callable[..., Iterable[Tensor]], outputs: int, *, x: Sequence[Tensor], state: Sequence[Tensor],
    constants: Sequence[Any], sizes: None = None,
) -> list[Tensor]:  # fmt: skip
    """The result of a captured loop in its form alone, from one step: the state keeps its form.

    Args:
        step: (*rows of the step, *state, *constants) -> next state.
        outputs: number of tensors of the state that are returned for every step.
        x: as of the loop.
        state: as of the loop.
        constants: as of the loop.
        sizes: as of the loop.
    """
    new = [*step(*(rows.select(0, 0) for rows in x), *state, *constants)]
    return [one.new_empty((x[0].shape[0], *one.shape)) for one in new[:outputs]] + new


def with_steps(graph: fx.Graph) -> Iterator[Node]:
    """The nodes of a graph, with those of the steps of its loops."""
    for node in graph.nodes:
        for body in node.target.bodies if isinstance(node.target, Loop) else ():
            yield from body.graph_module.graph.nodes
        yield node


def has_loops(graph: fx.Graph) -> bool:
    """Whether a graph runs steps in a loop."""
    return any(isinstance(node.target, Loop) for node in graph.nodes)
