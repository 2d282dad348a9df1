"""Operators with the values of PyTorch's kernels and a backward that is correct: for all strides, and under vmap.

The CPU kernel behind the backward of batch and instance normalization (torch 2.13) compares the memory formats of its
input and the cotangent. Strides along dimensions of size one can hide a difference, as for one sample with a reshaped
channels-last cotangent: the kernel then reads one tensor in the order of the other. The backward of group normalization
crashes the process if only the bias of a channels-last input needs a gradient, and does not support vmap over such an
input. Here the backward is a formula. The backward of distances is wrong under vmap if only the cotangent has a
dimension of targets: all of them get the result of the first. Here all its operands have that dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lrp_fx.graph.exportable import exportable
from lrp_fx.graph.signed_function import SignedFunction
from lrp_fx.rules.formulas import wide

aten = torch.ops.aten


@dataclass(frozen=True)
class _Statistics:
    """Mean and variance of a normalization: computed from x, or buffers with one number per channel (dimension 1).

    Attributes:
        eps: added to the variance.
        from_x: whether they are computed from x.
        groups: number of groups of channels; 0 for one statistic per channel.
        samples: whether all samples share a statistic.
    """

    eps: float
    from_x: bool
    groups: int
    samples: bool

    def scaled(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x - mean) * rstd, and rstd; x as :meth:`split` returns it."""
        if self.from_x:
            dims = self._dims(x)
            mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        assert mean is not None
        rstd = self.inverse(x, var)
        return (x - _by_channel(mean, x)) * rstd, rstd

    def inverse(self, like: Tensor, var: Tensor | None) -> Tensor:
        """rstd = 1 / sqrt(var + eps), broadcast to the shape of ``like``."""
        assert var is not None
        return torch.rsqrt(_by_channel(wide(var), like) + self.eps)

    def free(self, g: Tensor, scaled: Tensor) -> Tensor:
        """A cotangent minus the part that goes through mean and variance of x."""
        dims = self._dims(g)
        return g - g.mean(dims, keepdim=True) - scaled * (g * scaled).mean(dims, keepdim=True)

    def split(self, x: Tensor) -> Tensor:
        """x with a dimension of groups in front of the channels."""
        return x.unflatten(1, (self.groups, -1)) if self.groups else x

    def joined(self, x: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        return x.flatten(1, 2) if self.groups else x

    def _dims(self, x: Tensor) -> list[int]:
        return [d for d in range(x.dim()) if d > 1 or (d == 0 and self.samples)]


def _by_channel(value: Tensor, like: Tensor) -> Tensor:
    """Reshape one number per channel to broadcast against ``like``; other statistics have its dimensions already."""
    return value if value.dim() == like.dim() else value.reshape([1, -1] + [1] * (like.dim() - 2))


class _Normalized(SignedFunction):
    """y, with the gradient of y = (x - mean) * rstd * weight + bias as a formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
        eps: float, from_x: bool, groups: int, samples: bool,
    ) -> Tensor:  # fmt: skip
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight, bias, mean, var, *how = inputs
        ctx.how = _Statistics(*how)
        ctx.dtypes = [t if t is None else t.dtype for t in (x, weight, bias)]
        needs_values = ctx.how.from_x or (weight is not None and weight.requires_grad)
        ctx.save_for_backward(x if needs_values else None, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, mean, var = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        how: _Statistics = ctx.how
        g, rest = wide(g), [d for d in range(g.dim()) if d != 1]
        back = g if weight is None else g * _by_channel(wide(weight), g)
        cotangents: list[Tensor | None] = [None, None, g.sum(rest) if needs_bias else None]
        if x is None:
            cotangents[0] = back * how.inverse(g, var) if needs_x else None
        elif needs_x or needs_weight:
            scaled, rstd = how.scaled(how.split(wide(x)), mean, var)
            back = how.free(how.split(back), scaled) if how.from_x else back
            cotangents[:2] = how.joined(back * rstd), (g * how.joined(scaled)).sum(rest) if needs_weight else None
        cast = [t if t is None else t.to(dtype) for t, dtype in zip(cotangents, ctx.dtypes, strict=True)]
        return None, *cast, *(None for _ in range(6))


_normalized = exportable(
    _Normalized,
    "normalized(Tensor y, Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, bool from_x, "
    "int groups, bool samples) -> Tensor",
)


def normalized(y: Tensor, *operands: Tensor | None, eps: float, from_x: bool, groups: int, samples: bool) -> Tensor:
    """y, with the gradient of a normalization for x, weight and bias.

    ``operands`` are x, weight, bias, mean and variance; the last two are read if not ``from_x``. The other arguments
    are those of :class:`_Statistics`.
    """
    call = _normalized if torch.compiler.is_exporting() else _Normalized.apply
    return call(y, *operands, eps, from_x, groups, samples)


class _Distances(SignedFunction):
    """y, with the gradient of the distances between the rows of two tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, other: Tensor, p: float) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, x, other, ctx.p = inputs
        ctx.save_for_backward(y, x, other)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        y, x, other = ctx.saved_tensors
        _, needs_x, needs_other, _ = ctx.needs_input_grad
        of_x = _of_distances(g, x, other, y, ctx.p) if needs_x else None
        return None, of_x, _of_distances(g.mT, other, x, y.mT, ctx.p) if needs_other else None, None


def _of_distances(g: Tensor, x: Tensor, other: Tensor, y: Tensor, p: float) -> Tensor:
    """Cotangent of x, from that of its distances y to ``other``; every operand has all dimensions of g."""
    every = [t + torch.zeros_like(like) for t, like in ((x, g[..., :1]), (other, g.mT[..., :1]), (y, g))]
    first, second, distances = (t.contiguous() for t in every)
    return aten._cdist_backward.default(g.contiguous(), first, second, p, distances).sum_to_size(x.shape)


_distances = exportable(_Distances, "distances(Tensor y, Tensor x, Tensor other, float p) -> Tensor")


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


# these functions have the signatures of the operators


def _batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    operands, how = (input, weight, bias, running_mean, running_var), (training, momentum, eps, cudnn_enabled)
    y = aten.batch_norm.default(*map(_detached, operands), *how)
    return normalized(y, *operands, eps=eps, from_x=training, groups=0, samples=True)


def _instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    operands, how = (input, weight, bias, running_mean, running_var), (use_input_stats, momentum, eps, cudnn_enabled)
    y = aten.instance_norm.default(*map(_detached, operands), *how)
    return normalized(y, *operands, eps=eps, from_x=use_input_stats, groups=0, samples=False)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    y = aten.group_norm.default(_detached(input), num_groups, _detached(weight), _detached(bias), eps, cudnn_enabled)
    return normalized(y, input, weight, bias, None, None, eps=eps, from_x=True, groups=num_groups, samples=False)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2, compute_mode: int | None = None) -> Tensor:
    y = aten.cdist.default(_detached(x1), _detached(x2), p, compute_mode)
    call = _distances if torch.compiler.is_exporting() else _Distances.apply
    return call(y, x1, x2, float(p))


_REPLACEMENTS = {
    aten.cdist.default: _cdist,
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten.group_norm.default: _group_norm,
}


def differentiable(target: Any) -> Any:
    """An operator, or its replacement with a correct backward: same arguments, same values."""
    return _REPLACEMENTS.get(target, target)


def own_derivatives(graph: fx.Graph) -> None:
    """Replace the operators of a graph by their :func:`differentiable` ones."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = differentiable(node.target)
