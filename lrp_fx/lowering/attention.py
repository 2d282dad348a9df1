"""Fused attention whose backward takes the cotangents of many targets in one call of the kernel.

The kernel's own backward has no batching rule: under ``torch.func.vmap`` it runs target by target, and its results are
copied together. Here the targets are folded into the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function

_FUSED = torch.ops.aten.scaled_dot_product_attention.default


def fold_targets(graph: fx.Graph) -> None:
    """Let every fused attention of a graph take many cotangents at once."""
    for node in graph.find_nodes(op="call_function", target=_FUSED):
        node.target = attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``: (N, ..., L, E) queries -> (N, ..., L, Ev)."""
    how = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return _FUSED(query, key, value, attn_mask, dropout_p, **how)
    return _Attention.apply(query, key, value, attn_mask, how)


class _Attention(Function):
    """Attention of which queries, keys and values are remembered."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: dict[str, Any]) -> Tensor:
        return _FUSED(query, key, value, mask, **how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.how = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        found = iter(_Cotangents.apply(g, *ctx.saved_tensors, ctx.how, needs))
        return *(next(found) if needed else None for needed in needs), None, None


class _Cotangents(Function):
    """Cotangents of those of query, key and value that need one, from that of the output."""

    @staticmethod
    def forward(
        g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: dict[str, Any], needs: Any
    ) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_(n) for x, n in zip((query, key, value), needs, strict=True)]
        with torch.enable_grad():
            out = _FUSED(*leaves, mask, **how)
        return torch.autograd.grad(out, [x for x in leaves if x.requires_grad], g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """All targets at once: each a sample of its own, where the kernel has a batch (four dimensions)."""
        *tensors, how, needs = inputs
        each = [_per_target(x, dim, info.batch_size) for x, dim in zip(tensors, dims, strict=False)]
        fold = each[0].dim() == 5  # type: ignore[union-attr]
        found = _Cotangents.apply(*(x.flatten(0, 1) if fold and x is not None else x for x in each), how, needs)
        found = tuple(f.unflatten(0, (info.batch_size, -1)) if fold else f for f in found)
        return found, (0,) * len(found)


def _per_target(x: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    if x is None:
        return None
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
