"""Fused recurrent layers, written out step by step while a model is captured.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` (and their cells) are one opaque kernel each. Relevance has to pass through every
step of them, so for the duration of a capture their calls are answered by the equations in their documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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


def _direction(
    x: Tensor,
    sizes: list[int],
    state: State,
    weights: list[Tensor],
    biases: list[Tensor | None],
    step: Step,
    back: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction over packed rows: ``sizes[t]`` rows of ``x`` belong to step t, longest samples first.

    Args:
        weights: W_ih, W_hh and, for a projected LSTM, W_hr.

    Returns:
        The packed outputs, and the last state of every sample.
    """
    rows = list(linear(x, weights[0], biases[0]).split(sizes))
    order = range(len(sizes) - 1, -1, -1) if back else range(len(sizes))
    outputs: list[Tensor] = [x] * len(sizes)
    active = sizes[order[0]]
    current, finished = tuple(s[:active] for s in state), []
    for t in order:
        if sizes[t] < active:  # the shortest samples end here
            finished.append(tuple(s[sizes[t] :] for s in current))
            current = tuple(s[: sizes[t]] for s in current)
        elif sizes[t] > active:  # backwards, longer samples begin here
            current = tuple(torch.cat([s, s0[active : sizes[t]]]) for s, s0 in zip(current, state, strict=True))
        active = sizes[t]
        current = step(rows[t], linear(current[0], weights[1], biases[1]), current)
        if len(weights) > 2:
            current = (linear(current[0], weights[2]), *current[1:])
        outputs[t] = current[0]
    last = tuple(
        torch.cat([current[k], *(f[k] for f in reversed(finished))]) if finished else current[k]
        for k in range(len(state))
    )
    return torch.cat(outputs), last


def unroll(
    x: Tensor, sizes: list[int], hx: State, flat: list[Tensor], bias: bool, layers: int, both: bool, step: Step
) -> tuple[Tensor, State]:
    """A stack of layers over packed rows; the arguments are those of the fused operators."""
    directions = 2 if both else 1
    per = len(flat) // (layers * directions)
    finals: list[State] = []
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            index = layer * directions + d
            own = flat[index * per : (index + 1) * per]
            biases: list[Tensor | None] = list(own[2:4]) if bias else [None, None]
            weights = own[:2] + (own[4:] if bias else own[2:])
            output, last = _direction(x, sizes, tuple(s[index] for s in hx), weights, biases, step, d == 1)
            outputs.append(output)
            finals.append(last)
        x = torch.cat(outputs, -1) if both else outputs[0]
    return x, tuple(torch.stack([f[k] for f in finals]) for k in range(len(hx)))


def _layer(name: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """A call of a fused recurrent operator, on a padded or a packed sequence."""
    states = (lambda hx: tuple(hx)) if name == "lstm" else (lambda hx: (hx,))
    if isinstance(args[3], bool):
        x, hx, flat, bias, layers, _, _, both, batch_first = args
        steps = x.transpose(0, 1) if batch_first else x
        length, batch = int(steps.shape[0]), int(steps.shape[1])
        y, last = unroll(steps.flatten(0, 1), [batch] * length, states(hx), flat, bias, layers, both, _STEPS[name])
        y = y.unflatten(0, (length, batch))
        return (y.transpose(0, 1) if batch_first else y, *last)
    x, batch_sizes, hx, flat, bias, layers, _, _, both = args
    y, last = unroll(x, batch_sizes.tolist(), states(hx), flat, bias, layers, both, _STEPS[name])
    return (y, *last)


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
