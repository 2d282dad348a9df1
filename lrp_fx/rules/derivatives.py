"""Operators with another derivative than PyTorch's: the same values, and a backward that holds for all strides.

The CPU kernel behind the backward of batch and instance normalization (torch 2.13) compares the memory formats of its
input and of the cotangent. Strides along dimensions of size one can hide a difference from it, as they do for one
sample whose cotangent is channels-last and was reshaped: it then reads one in the order of the other. The backward of
group normalization ends the process where only the bias of a channels-last input is asked for, and refuses vmap over
such an input. Here the backward is a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function

from lrp_fx.graph.exportable import exportable
from lrp_fx.rules.formulas import wide

aten = torch.ops.aten


@dataclass(frozen=True)
class _Statistics:
    """What a normalization divides by: statistics of x, or given ones (one number a channel, dimension 1).

    Attributes:
        eps: what is added to the variance.
        own: whether they are those of x.
        groups: into how many groups channels are split, in a dimension of their own; 0 where they are not.
        samples: whether all samples share one.
    """

    eps: float
    own: bool
    groups: int
    samples: bool

    def scaled(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x - mean) * rstd, and rstd; channels split."""
        if self.own:
            dims = self._dims(x)
            mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        assert mean is not None
        rstd = self.inverse(x, var)
        return (x - _by_channel(mean, x)) * rstd, rstd

    def inverse(self, like: Tensor, var: Tensor | None) -> Tensor:
        """Rstd of a variance."""
        assert var is not None
        return torch.rsqrt(_by_channel(wide(var), like) + self.eps)

    def free(self, g: Tensor, scaled: Tensor) -> Tensor:
        """A cotangent without what the statistics of x itself take from it."""
        dims = self._dims(g)
        return g - g.mean(dims, keepdim=True) - scaled * (g * scaled).mean(dims, keepdim=True)

    def split(self, x: Tensor) -> Tensor:
        """x with its channels in groups."""
        return x.unflatten(1, (self.groups, -1)) if self.groups else x

    def joined(self, x: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        return x.flatten(1, 2) if self.groups else x

    def _dims(self, x: Tensor) -> list[int]:
        return [d for d in range(x.dim()) if d > 1 or (d == 0 and self.samples)]


def _by_channel(value: Tensor, like: Tensor) -> Tensor:
    """One number a channel, to be broadcast; a statistic that has the dimensions of ``like`` already as it is."""
    return value if value.dim() == like.dim() else value.reshape([1, -1] + [1] * (like.dim() - 2))


class _Normalized(Function):
    """Plain gradient of y = (x - mean) * rstd * weight + bias, by the formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
        eps: float, own: bool, groups: int, samples: bool,
    ) -> Tensor:  # fmt: skip
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight, bias, mean, var, *how = inputs
        ctx.how = _Statistics(*how)
        ctx.dtypes = [t if t is None else t.dtype for t in (x, weight, bias)]
        reads = ctx.how.own or (weight is not None and weight.requires_grad)
        ctx.save_for_backward(x if reads else None, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, mean, var = ctx.saved_tensors
        _, of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        how: _Statistics = ctx.how
        g, rest = wide(g), [d for d in range(g.dim()) if d != 1]
        back = g if weight is None else g * _by_channel(wide(weight), g)
        cotangents: list[Tensor | None] = [None, None, g.sum(rest) if of_bias else None]
        if x is None:
            cotangents[0] = back * how.inverse(g, var) if of_x else None
        elif of_x or of_weight:
            scaled, rstd = how.scaled(how.split(wide(x)), mean, var)
            back = how.free(how.split(back), scaled) if how.own else back
            cotangents[:2] = how.joined(back * rstd), (g * how.joined(scaled)).sum(rest) if of_weight else None
        cast = [t if t is None else t.to(dtype) for t, dtype in zip(cotangents, ctx.dtypes, strict=True)]
        return None, *cast, *(None for _ in range(6))


_normalized = exportable(
    _Normalized,
    "normalized(Tensor y, Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, bool own, "
    "int groups, bool samples) -> Tensor",
)


def normalized(y: Tensor, *operands: Tensor | None, eps: float, own: bool, groups: int, samples: bool) -> Tensor:
    """y, with the plain gradient of a normalization for its operands: x, weight, bias, mean and variance.

    See :class:`_Statistics` for the others. The mean and the variance are read where they are not x's own.
    """
    call = _normalized if torch.compiler.is_exporting() else _Normalized.apply
    return call(y, *operands, eps, own, groups, samples)


def _held(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


# the arguments of these are the operators' own, by name


def _batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    operands, how = (input, weight, bias, running_mean, running_var), (training, momentum, eps, cudnn_enabled)
    y = aten.batch_norm.default(*map(_held, operands), *how)
    return normalized(y, *operands, eps=eps, own=training, groups=0, samples=True)


def _instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    operands, how = (input, weight, bias, running_mean, running_var), (use_input_stats, momentum, eps, cudnn_enabled)
    y = aten.instance_norm.default(*map(_held, operands), *how)
    return normalized(y, *operands, eps=eps, own=use_input_stats, groups=0, samples=False)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    y = aten.group_norm.default(_held(input), num_groups, _held(weight), _held(bias), eps, cudnn_enabled)
    return normalized(y, input, weight, bias, None, None, eps=eps, own=True, groups=num_groups, samples=False)


_OWN = {
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten.group_norm.default: _group_norm,
}


def differentiable(target: Any) -> Any:
    """An operator, or what stands for it where autograd goes through it: same arguments, same values."""
    return _OWN.get(target, target)


def own_derivatives(graph: fx.Graph) -> None:
    """Call :func:`differentiable` operators in a graph."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = differentiable(node.target)
