"""Fused attention with a batching rule: its backward kernel takes the cotangents of many targets in one call.

PyTorch's kernel has none: under ``torch.func.vmap`` its backward runs target by target, and the results are stacked.
Here the targets are folded into the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.nn.attention import SDPBackend

from lrp_fx.graph.unfuse_attention import FUSED

aten = torch.ops.aten

_FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_BACK = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def fold_targets(graph: fx.Graph) -> None:
    """Replace every fused attention of a graph by :func:`attention`."""
    for node in graph.find_nodes(op="call_function", target=FUSED):
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
        return FUSED(query, key, value, attn_mask, dropout_p, **how)
    return _Attention.apply(query, key, value, _added(attn_mask, query), how)[0]


class _Attention(Function):
    """Attention that saves its operands, its output and, for the CPU kernel, the log-sum-exp of the scores."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if not _on_processor(query, key, value, mask, how):
            return FUSED(query, key, value, mask, **how), None
        return _FLASH(query, key, value, 0.0, how["is_causal"], attn_mask=mask, scale=how["scale"])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        *tensors, ctx.how = inputs
        out, sums = output
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        ctx.save_for_backward(*tensors, out, sums)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        cotangents = iter(_Cotangents.apply(g, *ctx.saved_tensors, ctx.how, needs))
        return *(next(cotangents) if needed else None for needed in needs), None, None


def _on_processor(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: dict[str, Any]) -> bool:
    """Whether PyTorch would choose the fused CPU kernel, whose forward and backward are operators of their own."""
    if query.device.type != "cpu":
        return False
    return SDPBackend(torch._fused_sdp_choice(query, key, value, mask, 0.0, **how)) == SDPBackend.FLASH_ATTENTION


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A boolean mask as a mask that is added to the scores: 0 or -inf."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf)


_MASK = 4  #: position of the mask among the tensors of _Cotangents; the output follows it


class _Cotangents(Function):
    """Cotangents of query, key and value (those with ``needs``) from the cotangent of the output."""

    @staticmethod
    def forward(
        g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, sums: Tensor | None,
        how: dict[str, Any], needs: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if sums is not None:
            rest = {"attn_mask": mask, "scale": how["scale"]}
            cotangents = _FLASH_BACK(g, query, key, value, out, sums, 0.0, how["is_causal"], **rest)
            return tuple(f for f, needed in zip(cotangents, needs, strict=True) if needed)
        leaves = [x.detach().requires_grad_(n) for x, n in zip((query, key, value), needs, strict=True)]
        with torch.enable_grad():
            again = FUSED(*leaves, mask, **how)
        return torch.autograd.grad(again, [x for x in leaves if x.requires_grad], g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """All targets at once: with a batch dimension (four dimensions), each target is a sample of its own."""
        *tensors, how, needs = inputs
        each = [_per_target(x, dim, info.batch_size) for x, dim in zip(tensors, dims, strict=False)]
        fold = each[0].dim() == 5  # type: ignore[union-attr]
        if fold:
            each = [x if x is None else x.flatten(0, 1) for x in each]
            mask, batch = tensors[_MASK], tensors[_MASK + 1].shape[0]
            if mask is not None and (mask.dim() < 4 or mask.shape[0] != batch):
                each[_MASK] = mask  # a mask for all samples is one for all targets
        cotangents = _Cotangents.apply(*each, how, needs)
        cotangents = tuple(f.unflatten(0, (info.batch_size, -1)) if fold else f for f in cotangents)
        return cotangents, (0,) * len(cotangents)


def _per_target(x: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    if x is None:
        return None
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
