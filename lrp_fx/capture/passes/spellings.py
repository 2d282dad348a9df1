"""Decompositions that PyTorch lacks, or that are not differentiable everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _times_log(x: Any, y: Any) -> Tensor:
    """x log y, 0 if x is 0; log is not evaluated there, as its derivative could be infinite."""
    return x * torch.log(_apart_from(x, torch.as_tensor(y)))


def _times_log1p(x: Any, y: Any) -> Tensor:
    """x log(1 + y), 0 if x is 0."""
    return x * torch.log1p(torch.where(_is_zero(x, y), 0.0, torch.as_tensor(y)))


def _apart_from(x: Any, y: Tensor) -> Tensor:
    return torch.where(_is_zero(x, y), 1.0, y)


def _is_zero(x: Any, y: Any) -> Any:
    return torch.logical_and(torch.as_tensor(x) == 0, torch.logical_not(torch.isnan(torch.as_tensor(y))))


def _polar(magnitude: Tensor, angle: Tensor) -> Tensor:
    return torch.complex(magnitude * torch.cos(angle), magnitude * torch.sin(angle))


def _var_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    dim = args[0] if args and not isinstance(args[0], bool) else kwargs.get("dim")
    mean = x.mean(dim, kwargs.get("keepdim", args[2] if len(args) > 2 else False)) if dim is not None else x.mean()
    return torch.var(x, *args, **kwargs), mean


def _std_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    variance, mean = _var_mean(x, *args, **kwargs)
    return variance.sqrt(), mean


def _rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    """In evaluation mode; in training mode the slopes are random."""
    if training:
        raise NotImplementedError
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    along = [1] * source.dim()
    along[dim] = -1
    places = index.view(along).expand_as(source)
    return x.scatter_reduce(dim, places, source, reduce, include_self=include_self)


_WORDS = {"add": "sum", "multiply": "prod"}


def _scatter(x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str) -> Tensor:
    """The older form of ``scatter_reduce``, which has no derivative."""
    values = source if isinstance(source, Tensor) else torch.full(index.shape, source, dtype=x.dtype, device=x.device)
    return x.scatter_reduce(dim, index, values, _WORDS[reduce])


def _cov(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    """Covariances of the rows of x; PyTorch's decomposition reads a value, for a warning."""
    rows = x if x.dim() > 1 else x.view(1, -1)
    weights = fweights if aweights is None else aweights if fweights is None else fweights * aweights
    total: Any = rows.shape[1] if weights is None else weights.sum()
    weighted = rows if weights is None else rows * weights
    mean = weighted.mean(1, True) if weights is None else weighted.sum(1, True) / total
    lost: Any = correction
    if aweights is not None and weights is not None:
        lost = correction * (weights * aweights).sum() / total
    centred = rows - mean
    products = (centred if weights is None else centred * weights) @ centred.mT.conj()
    return (products / (total - lost)).squeeze()


def _corrcoef(x: Tensor) -> Tensor:
    """Correlations of the rows of x."""
    covariance = _cov(x)
    if covariance.dim() == 0:
        return covariance / covariance
    deviations = torch.sqrt(covariance.diagonal())
    return covariance / deviations.unsqueeze(1) / deviations.unsqueeze(0)


_SEGMENTS = {"sum": ("sum", 0.0), "mean": ("mean", float("nan")), "prod": ("prod", 1.0)}
_SEGMENTS |= {"max": ("amax", float("-inf")), "min": ("amin", float("inf"))}


def _segment_reduce(
    data: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Any = None, offsets: Tensor | None = None,
    axis: int = 0, unsafe: bool = False, initial: float | None = None,
) -> Tensor:  # fmt: skip
    """Reduction of segments of the first dimension, given by lengths or offsets."""
    if lengths is None and offsets is not None:
        lengths = offsets.diff()
    if lengths is None or lengths.dim() != 1 or axis != 0:
        raise NotImplementedError
    how, empty = _SEGMENTS[reduce]
    count = lengths.shape[0]
    segment = torch.repeat_interleave(torch.arange(count, device=data.device), lengths, output_size=data.shape[0])
    places = segment.view(-1, *[1] * (data.dim() - 1)).expand_as(data)
    start = data.new_full((count, *data.shape[1:]), empty if initial is None else initial)
    return start.scatter_reduce(0, places, data, how, include_self=initial is not None)


def _lerp(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    return start + weight * (end - start)


def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Slopes belong to dimension 1, or there is one for all."""
    slopes = weight.reshape([-1 if dim == 1 else 1 for dim in range(x.dim())] if weight.numel() > 1 else [])
    return torch.where(x > 0, x, slopes * x)


def _remainder(x: Tensor, divisor: Tensor) -> Tensor:
    return x - divisor * torch.floor(x / divisor)


def _fmod(x: Tensor, divisor: Tensor) -> Tensor:
    return x - divisor * torch.trunc(x / divisor)


def _embedding_bag(
    table: Tensor, indices: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Weighted sums of rows of a table: rows times weights, summed by bag."""
    if per_sample_weights is None:
        raise NotImplementedError
    starts = offsets[:-1] if include_last_offset else offsets
    bags = torch.searchsorted(starts, torch.arange(indices.shape[0], device=indices.device), right=True) - 1
    weights = per_sample_weights
    if padding_idx is not None:
        weights = torch.where(indices == padding_idx, 0.0, weights)
    rows = torch.nn.functional.embedding(indices, table) * weights.unsqueeze(-1)
    sums = rows.new_zeros((starts.shape[0], table.shape[1])).index_add(0, bags, rows)
    counts = torch.zeros_like(starts).index_add(0, bags, torch.ones_like(bags, dtype=starts.dtype))
    return sums, bags, counts, starts


def _slice_scatter(x: Tensor, source: Tensor, dim: int = 0, *bounds: Any, **named: Any) -> Tensor:
    parts = torch.ops.aten.slice_scatter(_parts(x), _parts(source.to(x.dtype)), dim % x.dim(), *bounds, **named)
    return torch.view_as_complex(parts)


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: Any) -> Tensor:
    return torch.view_as_complex(_parts(x).select_scatter(_parts(source.to(x.dtype)), dim % x.dim(), index))


def _parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())


def sums_nothing(equation: str) -> bool:
    """Whether an einsum multiplies entries and sums none: "bchw,bc->bchw"."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    distinct = all(len(set(term)) == len(term) for term in (*operands, result))
    return bool(arrow) and "." not in equation and distinct and len(operands) > 1 and set(result) == set(terms) - {","}


def _einsum(equation: str, tensors: list[Tensor], *, path: list[int] | None = None) -> Tensor:
    """An einsum that sums nothing, as a product that broadcasts."""
    terms, result = equation.replace(" ", "").split("->")
    factors = []
    for term, tensor in zip(terms.split(","), tensors, strict=True):
        factor = tensor.permute([term.index(letter) for letter in result if letter in term])
        for place, letter in enumerate(result):
            factor = factor if letter in term else factor.unsqueeze(place)
        factors.append(factor)
    return math.prod(factors[1:], start=factors[0])


#: Operators that have no derivative where their result is complex, by their real and imaginary parts.
COMPLEX_SPELLINGS: dict[Any, Callable[..., Any]] = {
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
}

#: operator -> a function of the same arguments. Declared operators are spelled like this where a signal steers them.
SPELLINGS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten.xlogy, name): _times_log for name in ("Tensor", "Scalar_Self", "Scalar_Other")},
    **{getattr(aten.special_xlogy, name): _times_log for name in ("default", "self_scalar", "other_scalar")},
    **{getattr(aten.special_xlog1py, name): _times_log1p for name in ("default", "self_scalar", "other_scalar")},
    **{getattr(aten.var_mean, name): _var_mean for name in ("default", "dim", "correction")},
    **{getattr(aten.std_mean, name): _std_mean for name in ("default", "dim", "correction")},
    aten.lerp.Tensor: _lerp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.Tensor: lambda x, max: _clamp(x, None, max),
    aten.prelu.default: _prelu,
    aten.remainder.Tensor: _remainder,
    aten.fmod.Tensor: _fmod,
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag,
    aten.einsum.default: _einsum,
    aten.cov.default: _cov,
    aten.corrcoef.default: _corrcoef,
    aten.polar.default: _polar,
    aten.rrelu.default: _rrelu,
    aten.index_reduce.default: _index_reduce,
    aten.segment_reduce.default: _segment_reduce,
    aten.scatter.reduce: _scatter,
    aten.scatter.value_reduce: _scatter,
}
