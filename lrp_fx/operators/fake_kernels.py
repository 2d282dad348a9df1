"""Shapes of results for operators whose shape function in PyTorch takes no symbolic sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._refs import _broadcast_shapes
from torch._subclasses.fake_impls import op_implementations_dict

SOLVE_TRIANGULAR = torch.ops.aten.linalg_solve_triangular.default


def _solution(mode: Any, _: Any, A: Tensor, B: Tensor, **flags: Any) -> Any:
    """A new (..., n, m) tensor for (..., n, n) and (..., n, m), or the transposes."""
    if not any(isinstance(size, torch.SymInt) for size in (*A.shape, *B.shape)):
        return NotImplemented  # PyTorch's function serves
    with mode:
        batch = _broadcast_shapes(A.shape[:-2], B.shape[:-2])
        return B.new_empty((*batch, B.shape[-1], B.shape[-2])).mT


def _padded(mode: Any, _: Any, x: Tensor, pad: Any, value: Any = 0) -> Any:
    """A new tensor, with ``pad`` entries more or less at both ends of its last dimensions."""
    if all(isinstance(size, int) for size in x.shape) or not any(isinstance(n, int) and n < 0 for n in pad):
        return NotImplemented
    sizes = list(x.shape)
    for place, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        sizes[-place] = sizes[-place] + before + after
    with mode:
        return x.new_empty(sizes)


op_implementations_dict.setdefault(SOLVE_TRIANGULAR, _solution)
op_implementations_dict.setdefault(torch.ops.aten.constant_pad_nd.default, _padded)
