"""Whether a captured graph computes what the model does: an export can go wrong without a word.

Code that asks whether it is being compiled may then take a shortcut that does not hold for the inputs at hand. One run
of both, on the inputs of the capture, tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.capture.containers import closed
from lrp_fx.capture.conventions import traceable

TOLERANCE = 1e-2  #: relative; far above what rounding makes of a model that is not chaotic, far below a wrong mask


def disagreement(model: torch.nn.Module, graph_module: torch.nn.Module, args: Any, kwargs: Any) -> float:
    """Largest difference of outputs, relative to the largest output.

    0 on tensors without values, and for inputs on which the model itself fails: the graph fails on them too, and says
    where.
    """
    if any(
        t.device.type == "meta" for t in (*model.parameters(), *pytree.tree_leaves((args, kwargs))) if _is_tensor(t)
    ):
        return 0.0
    with torch.no_grad():
        try:
            with traceable(model, experts=None):
                expected = _floats(model(*closed(args), **closed(kwargs)))
        except Exception:
            return 0.0
        found = _floats(graph_module(*args, **kwargs))
    return difference(expected, found)


def _floats(output: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if _is_tensor(t) and t.is_floating_point()]


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference of tensors, relative to the largest entry of each; infinite where their shapes differ."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    return max((_relative(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _relative(expected: Tensor, found: Tensor) -> float:
    """Largest difference of two tensors where both are finite, relative to the largest entry."""
    known = expected.isfinite() & found.isfinite()
    if not bool(known.any()):
        return 0.0
    scale = expected[known].abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((expected[known] - found[known]).abs().max() / scale)
