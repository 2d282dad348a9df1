"""Rule operators: forward-exact identities whose backward is a rule.

Each returns its first argument unchanged and passes the cotangent on as its rule says. They are ordinary calls in the
rewritten graph: in eager mode, under ``torch.compile`` and ``make_fx`` an autograd function (no copy), under
``torch.export`` a registered operator of the same name in ``torch.ops.lrp_fx``, with the same backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lrp_fx.graph.exportable import exportable
from lrp_fx.rules.formulas import favoured, inverse_deviation, normalization_cotangent, shared, stabilised
from lrp_fx.rules.registry import own_backward
from lrp_fx.rules.slopes import closed_slope


def nonzero(x: Tensor) -> Tensor:
    """x with a tiny number in place of every zero, so that x times (R / nonzero(x)) is R.

    Rules that look at weights alone give relevance to inputs that are 0 (black pixels).
    """
    if x.is_complex() or not x.is_floating_point():
        return x
    smallest = torch.finfo(x.dtype).tiny
    return torch.where(x == 0, math.sqrt(smallest) if smallest < 1e-30 else 2.0**-24, x)  # float16: its subnormal


def relevance_of(value: Tensor, cotangent: Tensor | None, feeds_zeros: bool = False) -> Tensor:
    """Value times cotangent; 0 where the cotangent is 0 or None: a score of -inf under a mask has none.

    Args:
        value: a tensor of the forward pass.
        cotangent: what came back to it, of its shape, or of several sweeps with a dimension more in front.
        feeds_zeros: whether a value of 0 can have relevance (:func:`nonzero`).
    """
    if cotangent is None:
        return torch.zeros_like(value).detach()
    value = nonzero(value.detach()) if feeds_zeros else value.detach()
    none = torch.zeros((), dtype=cotangent.dtype, device=cotangent.device)
    return torch.where(cotangent == 0, none, value * cotangent)


class _Scale(Function):
    """Uniform rule (AttnLRP eq. 7, prop. 3.3) and degree-k identity: cotangent times a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g * ctx.factor, None


class _Identity(Function):
    """Identity rule (AttnLRP eq. 9) on y = f(x): cotangent times the slope f(x)/x, so that x g_x = y g_y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return None, (g * slope).to(ctx.dtype), None


class _ClosedIdentity(Function):
    """The identity rule with a slope in closed form, computed from x on the way back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, slope: str) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, (g * closed_slope(ctx.slope, x.detach())).to(x.dtype), None


class _Epsilon(Function):
    """Epsilon rule (AttnLRP eq. 8) at the output z of a linear map: cotangent times z / (z + epsilon sign z)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, epsilon: float) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.epsilon = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        return (g * (z / stabilised(z, ctx.epsilon))).to(g.dtype), None


class _Share(Function):
    """A share of the relevance of a layer's output, handed to the runs that ``total`` sums: :func:`shared`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, total: Tensor, coefficient: float, sign: int, epsilon: float) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, total, ctx.coefficient, ctx.sign, ctx.epsilon = inputs
        ctx.save_for_backward(y, total)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, total = ctx.saved_tensors
        return g, shared(y, g, total, ctx.coefficient, ctx.sign, ctx.epsilon), None, None, None


class _Favoured(Function):
    """The generalised gamma rule at the output z of a linear map, ``a`` that of magnitudes alone: :func:`favoured`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, total: Tensor, a: Tensor, gamma: float, epsilon: float) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, _, a, ctx.gamma, ctx.epsilon = inputs
        ctx.save_for_backward(z, a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, a = ctx.saved_tensors
        return None, *favoured(z, a, g, ctx.gamma, ctx.epsilon), None, None


class _Rectified(Function):
    """Only positive cotangents pass (DeconvNet, guided backpropagation)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(min=0)


class _Own(Function):
    """A registered rule at an output y: cotangent backward(g, y, **parameters)."""

    @staticmethod
    def forward(y: Tensor, name: str, keys: list[str], values: list[float]) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, ctx.name, ctx.keys, ctx.values = inputs
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return own_backward(ctx.name)(g, y, **dict(zip(ctx.keys, ctx.values, strict=True))), None, None, None


class _Normalization(Function):
    """Identity rule on a fused normalization y = (x - mean) * rstd * weight + bias, rstd constant (AttnLRP 3.3.2).

    ``weight`` broadcasts against x; ``width`` says what shares a statistic (:func:`_rows`). The centring, where there
    is one, is linear and stays so.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, weight: Tensor | None, width: int, eps: float, centred: bool) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight, ctx.width, eps, ctx.centred = inputs
        ctx.save_for_backward(inverse_deviation(x, ctx.width, eps, ctx.centred), weight)  # not x: it may go

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rstd, weight = ctx.saved_tensors
        # of y's own backward the bias is left, where that carries relevance: x and the weight are held constant
        return g, normalization_cotangent(g, rstd, weight, ctx.width, ctx.centred), None, None, None, None


class _Product(Function):
    """A product with constant matrices: the backward for its rows is the product with these transposed."""

    @staticmethod
    def forward(op: Any, rows: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return op(rows, weight, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, _, weight, *rest = inputs
        ctx.save_for_backward(weight, *rest)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, *rest = ctx.saved_tensors
        return None, ctx.op(g, weight.transpose(-2, -1), *rest), None, *(None for _ in rest)


_scale = exportable(_Scale, "scale_relevance(Tensor x, float factor) -> Tensor")
_identity = exportable(_Identity, "identity_rule(Tensor y, Tensor x, Tensor slope) -> Tensor")
_closed_identity = exportable(_ClosedIdentity, "closed_identity_rule(Tensor y, Tensor x, str slope) -> Tensor")
_epsilon = exportable(_Epsilon, "epsilon_rule(Tensor z, float epsilon) -> Tensor")
_share = exportable(
    _Share, "share_relevance(Tensor y, Tensor total, float coefficient, int sign, float epsilon) -> Tensor"
)
_favoured = exportable(_Favoured, "favour_sign(Tensor z, Tensor total, Tensor a, float gamma, float epsilon) -> Tensor")
_rectified = exportable(_Rectified, "rectified_rule(Tensor y) -> Tensor")
_own = exportable(_Own, "own_rule(Tensor y, str name, str[] keys, float[] values) -> Tensor")
_normalization = exportable(
    _Normalization,
    "normalization_rule(Tensor y, Tensor x, Tensor? weight, int width, float eps, bool centred) -> Tensor",
)


def scale_relevance(x: Tensor, factor: float) -> Tensor:
    """x, with its cotangent multiplied by ``factor`` (uniform rule, AttnLRP eq. 7; degree-k identity)."""
    return _scale(x, factor) if torch.compiler.is_exporting() else _Scale.apply(x, factor)


def identity_rule(y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """y, with cotangent ``slope * g`` for x (identity rule, AttnLRP eq. 9). y and slope are constants to autograd."""
    return _identity(y, x, slope) if torch.compiler.is_exporting() else _Identity.apply(y, x, slope)


def closed_identity_rule(y: Tensor, x: Tensor, slope: str) -> Tensor:
    """:func:`identity_rule` with a formula of x for the slope, as the op table has them."""
    return _closed_identity(y, x, slope) if torch.compiler.is_exporting() else _ClosedIdentity.apply(y, x, slope)


def epsilon_rule(z: Tensor, epsilon: float) -> Tensor:
    """z, with cotangent ``g z / (z + epsilon sign z)`` (epsilon rule, AttnLRP eq. 8)."""
    return _epsilon(z, epsilon) if torch.compiler.is_exporting() else _Epsilon.apply(z, epsilon)


def share_relevance(y: Tensor, total: Tensor, coefficient: float, sign: int, epsilon: float) -> Tensor:
    """y, with a share of its relevance handed to the runs that ``total`` sums (:mod:`lrp_fx.rules.layer_rules`)."""
    share = _share if torch.compiler.is_exporting() else _Share.apply
    return share(y, total, coefficient, sign, epsilon)


def favour_sign(z: Tensor, total: Tensor, a: Tensor, gamma: float, epsilon: float) -> Tensor:
    """z, with its relevance handed to ``total`` and ``a`` by the generalised gamma rule (:func:`favoured`).

    Args:
        z: the output of a layer, a constant to autograd.
        total: the layer's output as a function of its input: z itself, or another run of it.
        a: the layer on magnitudes: of its input, weights and biases.
        gamma: by how much contributions of the output's own sign count more.
        epsilon: stabiliser of the divisor.
    """
    return (_favoured if torch.compiler.is_exporting() else _Favoured.apply)(z, total, a, gamma, epsilon)


def rectified_rule(y: Tensor) -> Tensor:
    """y, with its negative cotangents cut (Zeiler and Fergus 2014; Springenberg et al. 2015)."""
    return _rectified(y) if torch.compiler.is_exporting() else _Rectified.apply(y)


def own_rule(y: Tensor, name: str, keys: list[str], values: list[float]) -> Tensor:
    """y, with the cotangent of a rule that :func:`lrp_fx.register_rule` declared."""
    return _own(y, name, keys, values) if torch.compiler.is_exporting() else _Own.apply(y, name, keys, values)


def normalization_rule(y: Tensor, x: Tensor, weight: Tensor | None, width: int, eps: float, centred: bool) -> Tensor:
    """y, with the cotangent of its linear part for x: the statistic is a constant (AttnLRP section 3.3.2)."""
    if torch.compiler.is_exporting():
        return _normalization(y, x, weight, width, eps, centred)
    return _Normalization.apply(y, x, weight, width, eps, centred)


def constant_product(op: Any, rows: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    """``op(rows, weight, *rest)``, where the own backward of ``op`` computes a weight gradient that nobody reads."""
    return op(rows, weight, *rest) if torch.compiler.is_exporting() else _Product.apply(op, rows, weight, *rest)


def source(x: Tensor) -> Tensor:
    """x as a leaf at which a cotangent is collected."""
    return x.detach().requires_grad_()


#: what rule functions commute with: a choice of positions in front of them or behind, a choice of single entries of one
#: operand. A normalization commutes with a choice of positions where its features lie behind them (``passes``).
POSITIONS, ENTRIES = "a choice of positions", "a choice of entries"
EVERYTHING = frozenset({POSITIONS, ENTRIES})
TRAITS: dict[Any, frozenset[str]] = {
    scale_relevance: EVERYTHING,
    epsilon_rule: EVERYTHING,
    rectified_rule: EVERYTHING,
    identity_rule: frozenset({POSITIONS}),
    closed_identity_rule: frozenset({POSITIONS}),
    share_relevance: frozenset({POSITIONS}),
    favour_sign: frozenset({POSITIONS}),
    normalization_rule: frozenset(),
}


def commuting_with(what: str) -> frozenset[Any]:
    """The rule functions that commute with a choice of positions or of entries."""
    return frozenset(function for function, commutes in TRAITS.items() if what in commutes)
