"""Input check of lowered graphs: names, precisions and sizes; the same for graphs in memory and from files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.capture import Call
from lrp_fx.errors import InputError, first_line
from lrp_fx.lowering.dynamic_shapes import ShapeGuards

_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Accepts:
    """Inputs of a lowered graph.

    Attributes:
        dtypes: tensor inputs in the graph's order, with their precision.
        device: device of all tensor inputs.
        constants: the other inputs with their values, which are fixed in the graph; ``repr`` of values that are not
            plain.
        guards: shape guards.
        free: precision of Python floats that are inputs; None where they are constants.
    """

    dtypes: Mapping[str, torch.dtype]
    device: torch.device
    constants: Mapping[str, Any]
    guards: ShapeGuards
    free: torch.dtype | None = None

    @classmethod
    def of(cls, call: Call, guards: ShapeGuards) -> Accepts:
        """The inputs of a graph lowered with this call."""
        tensors = call.tensors
        rest = {n: _plain(v) for n, v in zip(call.names, call.leaves, strict=True) if n not in tensors}
        return cls(
            {n: t.dtype for n, t in tensors.items()}, next(iter(tensors.values())).device, rest, guards, call.free
        )

    def tensors(self, call: Call) -> list[Tensor]:
        """The tensors of a call in the graph's order.

        Raises:
            InputError: for missing and unknown inputs, another value of a constant, another precision or device, and
                sizes outside the guards.
        """
        leaves = dict(zip(call.names, call.leaves, strict=True))
        tensors = {n: v for n, v in leaves.items() if isinstance(v, Tensor)}
        if wrong := [*self.dtypes.keys() - tensors.keys(), *leaves.keys() - self.dtypes.keys() - self.constants.keys()]:
            raise InputError(
                f"this graph takes {', '.join((*self.dtypes, *self.constants))}; given were "
                f"{', '.join(leaves) or 'none'} ({', '.join(sorted(wrong))}: missing, no tensor, or unknown)"
            )
        for name, value in self.constants.items():
            if name in leaves and _plain(leaves[name]) != value:
                raise InputError(f"this graph was lowered with {name}={value!r}, not {leaves[name]!r}: lower it again")
        for name, dtype in self.dtypes.items():
            tensor = tensors[name]
            if (tensor.dtype, tensor.device) != (dtype, self.device):
                raise InputError(
                    f"this graph was lowered for '{name}' of {dtype} on {self.device}, not {tensor.dtype} on "
                    f"{tensor.device}: convert the input, or lower it again with this one"
                )
        ordered = [tensors[n] for n in self.dtypes]
        for name, tensor, dims in zip(self.dtypes, ordered, self.guards.shapes.dims, strict=True):
            if tensor.dim() != len(dims):
                raise InputError(f"this graph was lowered for '{name}' of {len(dims)} dimensions, not {tensor.dim()}")
        if (reason := self.guards.mismatch(ordered)) is not None:
            raise InputError(f"this graph was lowered for other sizes: {reason}. Lower it again with these inputs.")
        return ordered

    def plain(self) -> dict[str, Any]:
        """As plain data.

        Raises:
            Unstorable: for a formula of sizes that has no plain form.
        """
        return {
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()},
            "device": str(self.device),
            "constants": self.constants,
            **self.guards.plain(),
            "free": None if self.free is None else str(self.free).removeprefix("torch."),
            "captured": self.guards.captured.plain(),
        }


def _plain(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else repr(value)


@contextlib.contextmanager
def ran() -> Iterator[None]:
    """Turn a failure inside a graph into an :class:`InputError`: a token id out of range, a mask of wrong shape."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"the graph cannot run on these inputs: {reason}. Remedy: give inputs that the model itself accepts."
        ) from error
