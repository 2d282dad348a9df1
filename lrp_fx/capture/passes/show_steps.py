"""The first steps of every recurrence, written out beside its operator in the captured graph."""

from __future__ import annotations

import functools
import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from lrp_fx.capture.recurrence import RECURRENCE, advance
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.copies import splice
from lrp_fx.graph.module_calls import hand_on
from lrp_fx.graph.steps import SHOWN, STEP, Step, shown, step_of
from lrp_fx.operators.table import bind

_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn")


def show_steps(graph_module: fx.GraphModule) -> None:
    """Write out the first steps of every recurrence; its users read :func:`lrp_fx.graph.steps.shown` instead."""
    recurrences = graph_module.graph.find_nodes(op="call_function", target=RECURRENCE)
    for node in recurrences:
        _show(graph_module, node)
    if recurrences:
        graph_module.graph.lint()
        graph_module.recompile()


def _show(owner: fx.GraphModule, node: Node) -> None:
    bound, origin = bind(node), {k: v for k, v in node.meta.items() if k in _ORIGIN}
    names = [name for name in ("weight", "bias", "projection") if isinstance(bound[name], Node)]
    state, constants = list(bound["state"]), [bound[name] for name in names]
    body = _traced(owner, bound, state, names, constants)
    states: list[list[Node]] = []
    for number in range(SHOWN):
        with owner.graph.inserting_before(node):
            row = owner.graph.call_function(step_of, (bound["x"], number))
        (read, *_) = body.graph.find_nodes(op="placeholder")
        row.meta = {**origin, "val": read.meta["val"], STEP: Step(node.name, number)}
        state, copies = splice(owner, body, [row, *state, *constants], node)
        states.append(list(state))
        for inner, copy in copies.items():
            carried = tuple(i for i, new in enumerate(state) if new is copy)
            copy.meta = {**origin, "val": inner.meta["val"], STEP: Step(node.name, number, carried)}
    for item in list(node.users):
        assert item.target is operator.getitem
        place = int(item.args[1])  # type: ignore[arg-type]
        steps = [new[0] for new in states] if place == 0 else [states[-1][place - 1]]
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
    operands = [bound["x"], *state, *constants]
    values = [n.meta["val"] if "val" in n.meta else attribute(owner, n) for n in operands]
    mode = detect_fake_mode(values)
    if mode is not None:
        values = [mode.from_tensor(v, static_shapes=True) if detect_fake_mode([v]) is None else v for v in values]

    def step(row: Tensor, *tensors: Tensor) -> list[Tensor]:
        weights: dict[str, Any] = dict(zip(names, tensors[len(state) :], strict=True))
        return list(advance(bound["kind"], row, tensors[: len(state)], **weights))

    with torch.no_grad(), mode or nullcontext():
        values = [v.detach() for v in values]  # nodes of a graph that was read may share a value
        row = step_of(values[0], 0)
        return make_fx(step, pre_dispatch=True)(row, *values[1:])
