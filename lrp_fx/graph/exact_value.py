"""A tensor whose relevance flows to a rounded copy of it, of another precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrp_fx.graph.exportable import exportable
from lrp_fx.graph.signed_function import SignedFunction


class _ExactValue(SignedFunction):
    """The value of one tensor; its cotangent goes to another one that equals it up to rounding."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        value, carrier = ctx.saved_tensors
        ratio = torch.where((carrier == 0) | ~carrier.isfinite(), 1.0, value / carrier).to(carrier.dtype)
        return None, g.to(carrier.dtype) * ratio


def exact_value(value: Tensor, carrier: Tensor) -> Tensor:
    """``value``, with cotangent g value / carrier for ``carrier``: rounding changes no relevance."""
    return (_exact_value if torch.compiler.is_exporting() else _ExactValue.apply)(value, carrier)


_exact_value = exportable(_ExactValue, "exact_value(Tensor value, Tensor carrier) -> Tensor")
