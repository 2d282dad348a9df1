"""The first steps of every recurrence, written out beside its operator in the captured graph."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from lrp_fx.capture.passes.decompose import ORIGIN, example_values
from lrp_fx.capture.recurrence import RECURRENCE, advance
from lrp_fx.graph.copies import splice
from lrp_fx.graph.loop import CapturedLoop
from lrp_fx.graph.module_calls import hand_on
from lrp_fx.graph.steps import SHOWN, STEP, Step, shown, step_of
from lrp_fx.operators.table import bind


def show_steps(graph_module: fx.GraphModule) -> None:
    """Write out the first steps of every recurrence; its users read :func:`lrp_fx.graph.steps.shown` instead."""
    graph = graph_module.graph
    recurrences = [n for n in graph.nodes if n.target is RECURRENCE or isinstance(n.target, CapturedLoop)]
    for node in recurrences:
        _show(graph_module, node)
    if recurrences:
        graph_module.graph.lint()
        graph_module.recompile()


class _Written(NamedTuple):
    """A recurrence to be written out.

    Attributes:
        inputs: tensors with a row for each step.
        state: the first state.
        constants: further operands of a step.
        body: the graph of a step: (*its rows, *state, *constants) -> next state.
        outputs: number of tensors of the state that are returned for every step, the first ones.
    """

    inputs: list[Node]
    state: list[Node]
    constants: list[Node]
    body: fx.GraphModule
    outputs: int


def _of(owner: fx.GraphModule, node: Node) -> _Written:
    bound = bind(node)
    if isinstance(node.target, CapturedLoop):
        return _Written(bound["x"], bound["state"], bound["constants"], node.target.body, node.target.outputs)
    names = [name for name in ("weight", "bias", "projection") if isinstance(bound[name], Node)]
    state, constants = list(bound["state"]), [bound[name] for name in names]
    return _Written([bound["x"]], state, constants, _traced(owner, bound, state, names, constants), 1)


def _show(owner: fx.GraphModule, node: Node) -> None:
    written, origin = _of(owner, node), {k: v for k, v in node.meta.items() if k in ORIGIN}
    reads = written.body.graph.find_nodes(op="placeholder")
    states: list[list[Node]] = [written.state]
    for number in range(SHOWN):
        rows = []
        for x, read in zip(written.inputs, reads, strict=False):
            with owner.graph.inserting_before(node):
                rows.append(owner.graph.call_function(step_of, (x, number)))
            rows[-1].meta = {**origin, "val": read.meta["val"], STEP: Step(node.name, number)}
        state, copies = splice(owner, written.body, [*rows, *states[-1], *written.constants], node)
        states.append(list(state))
        for inner, copy in copies.items():
            carried = tuple(i for i, new in enumerate(state) if new is copy)
            traced = {k: v for k, v in inner.meta.items() if k in ORIGIN}
            copy.meta = {**origin, **traced, "val": inner.meta["val"], STEP: Step(node.name, number, carried)}
    for item in list(node.users):
        assert item.target is operator.getitem
        place = int(item.args[1])  # type: ignore[arg-type]
        last = place - written.outputs
        steps = [states[-1][last]] if last >= 0 else [new[place] for new in states[1:]]
        with owner.graph.inserting_after(item):
            whole = owner.graph.call_function(shown, (item, steps))
        whole.meta = dict(item.meta) | {STEP: Step(node.name, -1, (place,))}
        hand_on(item, whole)
        item.replace_all_uses_with(whole, delete_user_cb=functools.partial(operator.is_not, whole))


def _traced(
    owner: fx.GraphModule, bound: dict[str, Any], state: list[Node], names: list[str],
    constants: list[Node],
) -> fx.GraphModule:  # fmt: skip
    """One step as a graph: (its rows, *state, *constants) -> next state."""
    mode, values = example_values(owner, [bound["x"], *state, *constants])

    def step(row: Tensor, *tensors: Tensor) -> list[Tensor]:
        weights: dict[str, Any] = dict(zip(names, tensors[len(state) :], strict=True))
        return list(advance(bound["kind"], row, tensors[: len(state)], **weights))

    with torch.no_grad(), mode:
        row = step_of(values[0], 0)
        return make_fx(step, pre_dispatch=True)(row, *values[1:])
