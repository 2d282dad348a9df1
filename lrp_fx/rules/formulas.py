"""The arithmetic of rules, for the rule functions and for the ledger that checks them."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider: half precision cannot represent an epsilon of 1e-9."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """``z + epsilon * sign(z)`` with sign(0) = 1, in float32 at least: the stabiliser of the epsilon rule (eq. 8)."""
    z = wide(z)
    if z.is_complex():  # its sign is its direction: |z| grows by epsilon
        return z + epsilon * torch.where(z == 0, 1, z.sgn())
    sign_of = z + 0.0  # -0.0 + 0.0 is 0.0
    return torch.copysign(sign_of.new_full((), epsilon), sign_of).add_(z)


def shared(y: Tensor, g: Tensor, total: Tensor, coefficient: float, sign: int, epsilon: float) -> Tensor:
    """Cotangent for the runs of a share (``rules.layer_rules``): coefficient * y g / (total + epsilon sign total).

    For ``sign`` 1 or -1 it is 0 where y has another sign.
    """
    relevance = wide(y) * g  # half precision rounds small products to 0
    relevance = relevance if sign == 0 else torch.where(y * sign > 0, relevance, torch.zeros_like(relevance))
    relevance = relevance if coefficient == 1 else coefficient * relevance
    return (relevance / stabilised(total, epsilon)).to(y.dtype)


def favoured(z: Tensor, a: Tensor, g: Tensor, gamma: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """Cotangents of z = sum x w + b and of a = sum |x| |w| + |b| under the generalised gamma rule.

    P = (z + a) / 2 and N = (z - a) / 2 are the sums of positive and of negative contributions c_i = x_i w_i. Where
    z > 0 the rule hands each R_i = (c_i + gamma c_i+) / (z + gamma P) R, where z < 0 the same with c_i- and N. As
    c+ = (c + |c|) / 2 and c- = (c - |c|) / 2, that is a cotangent of (1 + gamma / 2) s for z, and of gamma / 2 s sign z
    for a, with s = z g / (z + gamma P or N) = |z| g / ((1 + gamma / 2) |z| + gamma / 2 a). Nothing cancels: both terms
    of the divisor are positive, and the signs of z are in the factors alone. All is divided by 1 + gamma / 2 here, for
    fewer passes over the tensors. An infinite z (masked scores that a layer mixes) gets s = 0: g is 0 there, or
    relevance is infinite.
    """
    z, a, part = wide(z), wide(a), gamma / (2 + gamma)
    z = z.clamp(torch.finfo(z.dtype).min, torch.finfo(z.dtype).max)
    size = z.abs()
    share = g / torch.add(size, a, alpha=part).add_(epsilon / (1 + gamma / 2))
    return (size * share).to(g.dtype), torch.addcmul(z.new_zeros(()), z, share, value=part).to(g.dtype)


def without_triangle(matrix: Tensor, right: Tensor | None, left: bool, unit: bool, vector: bool) -> Tensor:
    """C^-1 B, the solution of a triangular system without its triangle S (``analysis.systems``).

    Args:
        matrix: (..., n, n), with diagonal C.
        right: B, (..., n, k), or (..., k, n) on the right; None for an identity matrix.
        left, unit, vector: as in :class:`lrp_fx.analysis.facts.System`.
    """
    if unit:
        assert right is not None
        return right
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if right is None:
        return diagonal.reciprocal().diag_embed()
    if vector:
        return right / diagonal
    return right / diagonal.unsqueeze(-1 if left else -2)


def _rows(x: Tensor, width: int) -> Tensor:
    """x in float32 or wider; the last dimension holds the entries that share a statistic.

    These are ``width`` trailing dimensions if positive, one of ``-width`` groups of channels (dimension 1) if
    negative, and a channel over all samples if 0.
    """
    if width == 0:
        return wide(x).movedim(1, 0).flatten(1)
    return wide(x).flatten(-width) if width > 0 else wide(x).reshape(x.shape[0], -width, -1)


def _from_rows(rows: Tensor, like: Tensor, width: int) -> Tensor:
    """The inverse of :func:`_rows`, for a tensor with the shape and dtype of ``like``."""
    rows = rows.reshape(like.movedim(1, 0).shape).movedim(0, 1) if width == 0 else rows.reshape(like.shape)
    return rows.to(like.dtype)


def default_eps(dtype: torch.dtype) -> float:
    """Epsilon of an RMSNorm with eps=None: the machine epsilon of the precision that its kernel computes in."""
    return torch.finfo(torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype).eps


def inverse_deviation(x: Tensor, width: int, eps: float, centred: bool) -> Tensor:
    """rstd of a normalization, one per row: 1 / sqrt(variance + eps); the mean square if not centred."""
    rows = _rows(x.detach(), width)
    if centred:
        return torch.native_layer_norm(rows, rows.shape[-1:], None, None, eps)[2]  # the fastest kernel
    return torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)


def normalization_cotangent(g: Tensor, rstd: Tensor, weight: Tensor | None, width: int, centred: bool) -> Tensor:
    """Cotangent of x for y = (x - mean) * rstd * weight with rstd constant."""
    back = _rows(g if weight is None else g * weight, width) * rstd
    if centred:
        back = back - back.mean(-1, keepdim=True)
    return _from_rows(back, g, width)
