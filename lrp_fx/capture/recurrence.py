"""A recurrent layer in one direction as one operator, ``lrp_fx::recurrence``, whatever the number of its steps.

The kernels of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` hide their steps, and a capture would fix the number of steps.
This operator has the equations in their documentation; its input is W_ih x + b_ih. A graph with it is written, read and
run like any other. :mod:`lrp_fx.capture.passes.show_steps` writes out its first steps for analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils import _pytree as pytree

from lrp_fx.graph.steps import State, run_steps, step_of

Equations = Callable[[Tensor, Tensor, State], State]  #: (W_ih x + b_ih, W_hh h + b_hh, state) -> next state


def lstm_step(x: Tensor, h: Tensor, state: State) -> State:
    """c' = f c + i g, h' = o tanh(c'), gates in the order i, f, g, o."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(x: Tensor, h: Tensor, state: State) -> State:
    """h' = (1 - z) n + z h with n = tanh(x_n + r h_n), gates in the order r, z, n."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * state[0],)


def tanh_step(x: Tensor, h: Tensor, state: State) -> State:
    """h' = tanh(x + h)."""
    return (torch.tanh(x + h),)


def relu_step(x: Tensor, h: Tensor, state: State) -> State:
    """h' = relu(x + h)."""
    return (torch.relu(x + h),)


EQUATIONS: dict[str, Equations] = {"lstm": lstm_step, "gru": gru_step, "rnn_tanh": tanh_step, "rnn_relu": relu_step}


def advance(
    kind: str,
    row: Tensor,
    state: State,
    weight: Tensor,
    bias: Tensor | None = None,
    projection: Tensor | None = None,
) -> State:
    """One step.

    Args:
        kind: a key of :data:`EQUATIONS`.
        row: (B, G) W_ih x + b_ih.
        state: the previous state.
        weight: W_hh.
        bias: b_hh.
        projection: W_hr of a projected LSTM.
    """
    new = EQUATIONS[kind](row, linear(state[0], weight, bias), state)
    return new if projection is None else (linear(new[0], projection), *new[1:])


def _run(
    kind: str, x: Tensor, sizes: Tensor | None, state: Sequence[Tensor], weight: Tensor, bias: Tensor | None,
    projection: Tensor | None, backwards: bool,
) -> list[Tensor]:  # fmt: skip
    def step(_: int, rows: tuple[Tensor, ...], current: State) -> State:
        return advance(kind, rows[0], current, weight, bias, projection)

    ys, last = run_steps([x], sizes, tuple(state), step, backwards)
    return [*ys, *last]


def _like(
    kind: str, x: Tensor, sizes: Tensor | None, state: Sequence[Tensor], weight: Tensor, bias: Tensor | None,
    projection: Tensor | None, backwards: bool,
) -> list[Tensor]:  # fmt: skip
    new = advance(kind, step_of(x, 0), tuple(state), weight, bias, projection)
    return [new[0].new_empty(*x.shape[:-1], new[0].shape[-1]), *map(torch.empty_like, new)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    leaves, ctx.spec = pytree.tree_flatten(inputs)
    ctx.tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.save_for_backward(*(leaves[i] for i in ctx.tensors))


def _back(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Gradients, from a second run of the steps."""
    leaves, grads = list(ctx.others), [None] * len(ctx.others)
    for place, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
        leaves[place] = tensor.detach().requires_grad_(tensor.is_floating_point())
    wanted = [i for i in ctx.tensors if leaves[i].requires_grad]
    with torch.enable_grad():
        outputs = _run(*pytree.tree_unflatten(leaves, ctx.spec))
    pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None and y.requires_grad]
    results = torch.autograd.grad(
        [y for y, _ in pairs], [leaves[i] for i in wanted], [g for _, g in pairs], allow_unused=True
    )
    for place, result in zip(wanted, results, strict=True):
        grads[place] = result  # type: ignore[call-overload]
    return tuple(pytree.tree_unflatten(grads, ctx.spec))


recurrence = torch.library.custom_op(
    "lrp_fx::recurrence", _run, mutates_args=(),
    schema="(str kind, Tensor x, Tensor? sizes, Tensor[] state, Tensor weight, Tensor? bias, Tensor? projection, "
    "bool backwards) -> Tensor[]",
)  # fmt: skip
recurrence.register_fake(_like)
recurrence.register_autograd(_back, setup_context=_remember)
RECURRENCE = torch.ops.lrp_fx.recurrence.default
