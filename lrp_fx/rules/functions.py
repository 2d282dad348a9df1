"""Rule operators: forward-exact identities whose backward is a rule.

Each returns its first argument unchanged; its backward is the rule. They are ordinary calls in the rewritten graph. In
eager mode, under ``torch.compile`` and ``make_fx`` each is an autograd function (no copy), under ``torch.export`` a
registered operator of the same name in ``torch.ops.lrp_fx``, with the same backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrp_fx.graph.exportable import exportable
from lrp_fx.graph.signed_function import SignedFunction
from lrp_fx.rules.formulas import favoured, inverse_deviation, normalization_cotangent, shared, stabilised
from lrp_fx.rules.registry import custom_backward
from lrp_fx.rules.slopes import bounded_quotient, centred_quotient, closed_slope, either_quotient, quotient


def nonzero(x: Tensor) -> Tensor:
    """x with a tiny number t in place of every zero, so that t times the cotangent R / t is R.

    Rules that ignore the values of inputs (flat, w-square, z-box) give relevance to zeros (black pixels).
    """
    if x.is_complex() or not x.is_floating_point():
        return x
    smallest = torch.finfo(x.dtype).tiny
    return torch.where(x == 0, math.sqrt(smallest) if smallest < 1e-30 else 2.0**-24, x)  # float16: a subnormal


#: part of a tensor -> (operator, its arguments); the operator has a form that writes to its operand, too
SIGNED_PARTS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "positive": ("clamp", {"min": 0}),
    "negative": ("clamp", {"max": 0}),
    "magnitude": ("abs", {}),
}


def part_of_product(weight: Tensor, gain: Tensor, part: str) -> Tensor:
    """A part of ``weight * gain`` (:data:`SIGNED_PARTS`), in the memory of the product: weights are large."""
    name, arguments = SIGNED_PARTS[part]
    return getattr(weight * gain, f"{name}_")(**arguments)


def relevance_of(value: Tensor, cotangent: Tensor | None, feeds_zeros: bool = False) -> Tensor:
    """Value times cotangent; 0 where the cotangent is 0 or None (a masked score of -inf has a cotangent of 0).

    Args:
        value: a tensor of the forward pass.
        cotangent: its cotangent, of the same shape, with a leading dimension for several sweeps.
        feeds_zeros: whether a value of 0 can have relevance (:func:`nonzero`).
    """
    if cotangent is None:
        return torch.zeros_like(value).detach()
    value = nonzero(value.detach()) if feeds_zeros else value.detach()
    none = torch.zeros((), dtype=cotangent.dtype, device=cotangent.device)
    return torch.where(cotangent == 0, none, value * cotangent)


class _Scale(SignedFunction):
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


class _Identity(SignedFunction):
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


class _ClosedIdentity(SignedFunction):
    """The identity rule with a slope in closed form, computed from x in the backward."""

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


class _Epsilon(SignedFunction):
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


class _Share(SignedFunction):
    """A share of the relevance of a layer's output goes to the runs that ``total`` sums: :func:`shared`."""

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


class _Favoured(SignedFunction):
    """The generalised gamma rule at the output z of a linear map; ``a``: its output on magnitudes :func:`favoured`."""

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


class _Rectified(SignedFunction):
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


class _Custom(SignedFunction):
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
        return custom_backward(ctx.name)(g, y, **dict(zip(ctx.keys, ctx.values, strict=True))), None, None, None


class _Normalization(SignedFunction):
    """Identity rule on a fused normalization y = (x - mean) * rstd * weight + bias, rstd constant (AttnLRP 3.3.2).

    ``weight`` broadcasts against x; ``width`` tells which entries share a statistic (``formulas._rows``). The
    subtraction of the mean is linear and keeps its gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, weight: Tensor | None, width: int, eps: float, centred: bool) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight, ctx.width, eps, ctx.centred = inputs
        ctx.save_for_backward(inverse_deviation(x, ctx.width, eps, ctx.centred), weight)  # x itself can be freed

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rstd, weight = ctx.saved_tensors
        # y is a function of the bias alone (x and weight are detached), and g for y is the bias's cotangent
        return g, normalization_cotangent(g, rstd, weight, ctx.width, ctx.centred), None, None, None, None


class _Product(SignedFunction):
    """A product with constant matrices: the cotangent of the rows is the product with the transposed matrices."""

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
_custom = exportable(_Custom, "own_rule(Tensor y, str name, str[] keys, float[] values) -> Tensor")
_normalization = exportable(
    _Normalization,
    "normalization_rule(Tensor y, Tensor x, Tensor? weight, int width, float eps, bool centred) -> Tensor",
)


def scale_relevance(x: Tensor, factor: float) -> Tensor:
    """x, with its cotangent multiplied by ``factor`` (uniform rule, AttnLRP eq. 7; degree-k identity)."""
    return _scale(x, factor) if torch.compiler.is_exporting() else _Scale.apply(x, factor)


def identity_rule(y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """y, with cotangent ``slope * g`` for x (identity rule, AttnLRP eq. 9); y and slope get no gradient."""
    return _identity(y, x, slope) if torch.compiler.is_exporting() else _Identity.apply(y, x, slope)


def closed_identity_rule(y: Tensor, x: Tensor, slope: str) -> Tensor:
    """:func:`identity_rule` with a formula of x for the slope, as the op table has them."""
    return _closed_identity(y, x, slope) if torch.compiler.is_exporting() else _ClosedIdentity.apply(y, x, slope)


def epsilon_rule(z: Tensor, epsilon: float) -> Tensor:
    """z, with cotangent ``g z / (z + epsilon sign z)`` (epsilon rule, AttnLRP eq. 8)."""
    return _epsilon(z, epsilon) if torch.compiler.is_exporting() else _Epsilon.apply(z, epsilon)


def share_relevance(y: Tensor, total: Tensor, coefficient: float, sign: int, epsilon: float) -> Tensor:
    """y, with a share of its relevance for the runs that ``total`` sums (:mod:`lrp_fx.rules.layer_rules`)."""
    share = _share if torch.compiler.is_exporting() else _Share.apply
    return share(y, total, coefficient, sign, epsilon)


def favour_sign(z: Tensor, total: Tensor, a: Tensor, gamma: float, epsilon: float) -> Tensor:
    """z, with its relevance divided between ``total`` and ``a`` by the generalised gamma rule (:func:`favoured`).

    Args:
        z: the output of a layer; gets no gradient.
        total: the output of the layer as a function of its input: z itself, or another run.
        a: the output of the layer on magnitudes |x|, |w| and |b|.
        gamma: additional weight of contributions with the sign of the output.
        epsilon: stabiliser of the divisor.
    """
    return (_favoured if torch.compiler.is_exporting() else _Favoured.apply)(z, total, a, gamma, epsilon)


def rectified_rule(y: Tensor) -> Tensor:
    """y, with its negative cotangents cut (Zeiler and Fergus 2014; Springenberg et al. 2015)."""
    return _rectified(y) if torch.compiler.is_exporting() else _Rectified.apply(y)


def custom_rule(y: Tensor, name: str, keys: list[str], values: list[float]) -> Tensor:
    """y, with the cotangent of a rule that :func:`lrp_fx.register_rule` declared."""
    return _custom(y, name, keys, values) if torch.compiler.is_exporting() else _Custom.apply(y, name, keys, values)


def normalization_rule(y: Tensor, x: Tensor, weight: Tensor | None, width: int, eps: float, centred: bool) -> Tensor:
    """y, with the cotangent of its linear part for x: the statistic is a constant (AttnLRP section 3.3.2)."""
    if torch.compiler.is_exporting():
        return _normalization(y, x, weight, width, eps, centred)
    return _Normalization.apply(y, x, weight, width, eps, centred)


def constant_product(op: Any, rows: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    """``op(rows, weight, *rest)``, without the weight gradient that the backward of ``op`` would compute."""
    return op(rows, weight, *rest) if torch.compiler.is_exporting() else _Product.apply(op, rows, weight, *rest)


def source(x: Tensor) -> Tensor:
    """x detached, as a leaf that collects a cotangent."""
    return x.detach().requires_grad_()


#: selections that rule functions commute with: of positions (in all operands), of single entries. A normalization
#: commutes with a selection along dimensions in front of its features (``passes`` checks that).
POSITIONS, ENTRIES = "a choice of positions", "a choice of entries"
EVERYTHING = frozenset({POSITIONS, ENTRIES})
TRAITS: dict[Any, frozenset[str]] = {
    scale_relevance: EVERYTHING,
    epsilon_rule: EVERYTHING,
    rectified_rule: EVERYTHING,
    identity_rule: frozenset({POSITIONS}),
    closed_identity_rule: frozenset({POSITIONS}),
    share_relevance: EVERYTHING,
    favour_sign: EVERYTHING,
    normalization_rule: frozenset(),
    nonzero: frozenset({POSITIONS}),
    **dict.fromkeys((quotient, bounded_quotient, either_quotient, centred_quotient), frozenset({POSITIONS})),
}


def commuting_with(what: str) -> frozenset[Any]:
    """The rule functions that commute with ``what``, :data:`POSITIONS` or :data:`ENTRIES`."""
    return frozenset(function for function, commutes in TRAITS.items() if what in commutes)
