"""Fused recurrent layers, written out step by step while a model is captured.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` (and their cells) are one opaque kernel each. Relevance has to pass through every
step of them, so for the duration of a capture their calls are answered by the equations in their documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

State = tuple[Tensor, ...]  #: (h,) or (h, c)
Step = Callable[[Tensor, Tensor, State], State]  #: (W_ih x + b_ih, W_hh h + b_hh, state) -> next state


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


_STEPS: dict[str, Step] = {"lstm": lstm_step, "gru": gru_step, "rnn_tanh": tanh_step, "rnn_relu": relu_step}


@dataclass(frozen=True)
class _Packed:
    """Rows of a packed sequence, longest samples first: ``sizes[t]`` of them belong to step t."""

    sizes: list[int]

    def steps(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.sizes))

    def joined(self, steps: list[Tensor]) -> Tensor:
        return torch.cat(steps)


class _Padded:
    """Steps along the first dimension, all of the same number of rows."""

    def steps(self, x: Tensor) -> list[Tensor]:
        return list(x.unbind(0))

    def joined(self, steps: list[Tensor]) -> Tensor:
        return torch.stack(steps)


def _run(
    rows: list[Tensor], packed: bool, state: State, advance: Callable[[Tensor, State], State]
) -> tuple[list[Tensor], State]:
    """All steps in order; the rows of a packed sequence may become fewer (samples end) or more (samples begin)."""
    active = rows[0].shape[0]
    outputs, finished = [], []
    current = tuple(s[:active] for s in state) if packed else state
    for row in rows:
        size = row.shape[0]
        if packed and size < active:
            finished.append(tuple(s[size:] for s in current))
            current = tuple(s[:size] for s in current)
        elif packed and size > active:
            current = tuple(torch.cat([s, s0[active:size]]) for s, s0 in zip(current, state, strict=True))
        active = size
        current = advance(row, current)
        outputs.append(current[0])
    last = tuple(torch.cat([s, *(f[k] for f in reversed(finished))]) if finished else s for k, s in enumerate(current))
    return outputs, last


def _direction(
    x: Tensor,
    layout: _Packed | _Padded,
    state: State,
    weights: list[Tensor],
    biases: list[Tensor | None],
    step: Step,
    backwards: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction; ``weights`` are W_ih, W_hh and, for a projected LSTM, W_hr.

    Returns:
        The outputs in the layout of x, and the last state of every sample.
    """

    def advance(row: Tensor, state: State) -> State:
        new = step(row, linear(state[0], weights[1], biases[1]), state)
        return (linear(new[0], weights[2]), *new[1:]) if len(weights) > 2 else new

    rows = layout.steps(linear(x, weights[0], biases[0]))
    outputs, last = _run(rows[::-1] if backwards else rows, isinstance(layout, _Packed), state, advance)
    return layout.joined(outputs[::-1] if backwards else outputs), last


def unroll(
    x: Tensor, layout: _Packed | _Padded, hx: State, flat: list[Tensor], bias: bool, layers: int, both: bool, step: Step
) -> tuple[Tensor, State]:
    """A stack of layers; the arguments are those of the fused operators."""
    directions = 2 if both else 1
    per = len(flat) // (layers * directions)
    finals: list[State] = []
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            index = layer * directions + d
            weights_of_layer = flat[index * per : (index + 1) * per]
            biases: list[Tensor | None] = list(weights_of_layer[2:4]) if bias else [None, None]
            weights = weights_of_layer[:2] + (weights_of_layer[4:] if bias else weights_of_layer[2:])
            output, last = _direction(x, layout, tuple(s[index] for s in hx), weights, biases, step, d == 1)
            outputs.append(output)
            finals.append(last)
        x = torch.cat(outputs, -1) if both else outputs[0]
    return x, tuple(torch.stack([f[k] for f in finals]) for k in range(len(hx)))


def _layer(name: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """A call of a fused recurrent operator, on a padded or a packed sequence."""
    if isinstance(args[3], bool):
        x, hx, flat, bias, layers, _, _, both, batch_first = args
        layout: _Packed | _Padded = _Padded()
        x = x.transpose(0, 1) if batch_first else x
    else:
        x, sizes, hx, flat, bias, layers, _, _, both = args
        layout, batch_first = _Packed(sizes.tolist()), False
    states = tuple(hx) if name == "lstm" else (hx,)
    y, last = unroll(x, layout, states, flat, bias, layers, both, _STEPS[name])
    return (y.transpose(0, 1) if batch_first else y, *last)


def _cell(name: str, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
    state = tuple(hx) if name == "lstm" else (hx,)
    new = _STEPS[name](linear(x, w_ih, b_ih), linear(state[0], w_hh, b_hh), state)
    return new if name == "lstm" else new[0]


def written_out(model: torch.nn.Module) -> AbstractContextManager[Any]:
    """Within: calls of fused recurrent operators are answered step by step, in a model that has any."""
    recurrent = any(isinstance(m, (torch.nn.RNNBase, torch.nn.RNNCellBase)) for m in model.modules())
    return _WrittenOut() if recurrent else nullcontext()  # a mode is one more thing that higher-order operators trace


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        name = getattr(func, "__name__", "")
        if name in _STEPS and not kwargs:
            return _layer(name, args)
        if name.removesuffix("_cell") in _STEPS and name.endswith("_cell"):
            return _cell(name.removesuffix("_cell"), *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
