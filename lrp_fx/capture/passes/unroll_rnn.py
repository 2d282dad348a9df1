"""Fused recurrent layers while a model is captured: one operator for each layer and direction, or step by step.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` (and their cells) are opaque kernels without visible steps. During a capture
their calls are replaced by the equations in their documentation. A sequence of at least ``SHOWN`` steps becomes one
operator for any number of steps (:mod:`lrp_fx.capture.recurrence`); a shorter sequence and a cell become plain
operators.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from lrp_fx.capture.packed import ROWS, STEPS, PackedSequences, gathered, spread
from lrp_fx.capture.recurrence import EQUATIONS, RECURRENCE, advance
from lrp_fx.graph.steps import SHOWN, State, run_steps


def _direction(
    kind: str,
    x: Tensor,
    sizes: Tensor | None,
    state: State,
    weights: list[Tensor],
    biases: list[Tensor | None],
    backwards: bool,
    free: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction; ``weights`` are W_ih, W_hh and, for a projected LSTM, W_hr.

    Returns:
        The outputs in the layout of x, and the last state of every sample.
    """
    weighted, (hidden, *projected) = linear(x, weights[0], biases[0]), weights[1:]
    projection = projected[0] if projected else None
    if free and x.shape[0] >= SHOWN:
        y, *last = RECURRENCE(kind, weighted, sizes, list(state), hidden, biases[1], projection, backwards)
        return y, tuple(last)

    def step(_: int, rows: tuple[Tensor, ...], current: State) -> State:
        return advance(kind, rows[0], current, hidden, biases[1], projection)

    (y,), last = run_steps([weighted], sizes, state, step, backwards)
    return y, last


def _stack(
    kind: str, x: Tensor, sizes: Tensor | None, hx: State, flat: list[Tensor], bias: bool, layers: int, both: bool,
    free: bool,
) -> tuple[Tensor, State]:  # fmt: skip
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
            first = tuple(s[index] for s in hx)
            output, last = _direction(kind, x, sizes, first, weights, biases, d == 1, free)
            outputs.append(output)
            finals.append(last)
        x = torch.cat(outputs, -1) if both else outputs[0]
    return x, tuple(torch.stack([f[k] for f in finals]) for k in range(len(hx)))


def _layer(kind: str, args: tuple[Any, ...], free: bool, packed: PackedSequences | None) -> tuple[Tensor, ...]:
    """A call of a fused recurrent operator, on a padded or a packed sequence."""
    if isinstance(args[3], bool):
        x, hx, flat, bias, layers, _, _, both, batch_first = args
        states = tuple(hx) if kind == "lstm" else (hx,)
        y, last = _stack(kind, x.transpose(0, 1) if batch_first else x, None, states, flat, bias, layers, both, free)
        return (y.transpose(0, 1) if batch_first else y, *last)
    rows, sizes, hx, flat, bias, layers, _, _, both = args
    states = tuple(hx) if kind == "lstm" else (hx,)
    layout = packed.of(sizes) if packed is not None else None
    x = spread(rows, sizes, states[0].shape[1]) if layout is None else STEPS(rows, layout[0])
    y, last = _stack(kind, x, sizes, states, flat, bias, layers, both, free)
    return (gathered(y, sizes, rows.shape[0]) if layout is None else ROWS(y), *last)


def _cell(kind: str, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
    state = tuple(hx) if kind == "lstm" else (hx,)
    new = EQUATIONS[kind](linear(x, w_ih, b_ih), linear(state[0], w_hh, b_hh), state)
    return new if kind == "lstm" else new[0]


def written_out(
    model: torch.nn.Module, free: bool = True, packed: PackedSequences | None = None
) -> AbstractContextManager[Any]:
    """In this context calls of fused recurrent operators are replaced by equations, if the model has such layers.

    Args:
        model: the model.
        free: whether the number of steps is dynamic; otherwise every step is written out.
        packed: the packed sequences of the capture, whose lengths are then dynamic.
    """
    recurrent = any(isinstance(m, (torch.nn.RNNBase, torch.nn.RNNCellBase)) for m in model.modules())
    return _WrittenOut(free, packed) if recurrent else nullcontext()  # a mode more for higher-order operators to trace


class _WrittenOut(TorchFunctionMode):
    def __init__(self, free: bool, packed: PackedSequences | None) -> None:
        super().__init__()
        self._free, self._packed = free, packed if free else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        name = getattr(func, "__name__", "")
        if name in EQUATIONS and not kwargs:
            return _layer(name, args, self._free, self._packed)
        if name.removesuffix("_cell") in EQUATIONS and name.endswith("_cell"):
            return _cell(name.removesuffix("_cell"), *args, **(kwargs or {}))
        if self._packed is not None and not kwargs:
            if name == "_pack_padded_sequence":
                return self._packed.pack(*args)
            layout = self._packed.of(args[1] if name == "_pad_packed_sequence" else args[0] if args else None)
            if layout is not None and name == "_pad_packed_sequence":
                return self._packed.pad(*args)
            if layout is not None and name == "__getitem__" and args[1] == 0:
                return layout[1]  # every sample has a first step
        return func(*args, **(kwargs or {}))
