"""Slopes f(x)/x and (f(x) - f(0))/x of the identity rules: formulas of the op table, or quotients in the graph."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.errors import RuleSetError
from lrp_fx.graph.location import locate
from lrp_fx.graph.operands import value
from lrp_fx.operators.table import OpSpec, bind
from lrp_fx.rules.formulas import wide


def _normal_cdf(x: Any) -> Any:
    x = wide(x)  # in half precision 0.5 + 0.5 erf(x) rounds to 0 far below 0
    return torch.rsub(torch.erf(x * math.sqrt(0.5)), 0.5, alpha=-0.5)  # 0.5 + 0.5 erf(..) in one kernel


def _normal_cdf_tanh(x: Any) -> Any:
    x = wide(x)
    scale = math.sqrt(2 / math.pi)
    inner = x * torch.rsub(x * x, scale, alpha=-0.044715 * scale)  # scale (x + 0.044715 x^3)
    return torch.rsub(torch.tanh(inner), 0.5, alpha=-0.5)


_NAMES = {
    "abs": torch.abs,
    "exp": torch.exp,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "normal_cdf": _normal_cdf,
    "normal_cdf_tanh": _normal_cdf_tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
    "where": torch.where,
}


def singular_radius(dtype: torch.dtype) -> float:
    """The |x| below which the divisor of a singular slope f(x)/x, with f(0) != 0, stays at sign(x) times the radius.

    Outside the radius the rule is exact, inside it the slope stays far from overflow. In float32 and float64 it is the
    square root of the machine epsilon. Overflow depends on the largest number of a dtype: bfloat16 has the radius of
    float32, and the radius of float16 lets slopes reach 2^10.
    """
    if dtype is torch.float16:
        return 2.0**-10
    return math.sqrt(torch.finfo(torch.float32 if dtype is torch.bfloat16 else dtype).eps)


def closed_form(node: Node, spec: OpSpec) -> str:
    """The op table's formula of f(x)/x for ``node`` = f(x), with the values of the node's other arguments.

    Raises:
        RuleSetError: if the formula cannot be evaluated.
    """
    constants = {k: v for k, v in bind(node).items() if not isinstance(v, Node)}
    try:
        formula = ast.unparse(_Filled(constants).visit(ast.parse(str(spec.slope), mode="eval")))
        closed_slope(formula, torch.ones(1))
    except Exception as error:
        raise RuleSetError(
            f"slope {spec.slope!r} of {spec.name} cannot be evaluated at {locate(node)}: {error}"
        ) from error
    return formula


class _Filled(ast.NodeTransformer):
    """Replaces names by values."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.values[node.id]) if node.id in self.values else node


#: formula -> function; compilers trace a function, but not ``eval``
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {}


def closed_slope(formula: str, x: Tensor) -> Tensor:
    """Evaluate a slope formula at x.

    Raises:
        NameError: if the formula has names other than x and the functions of ``_NAMES``.
    """
    if formula not in _FUNCTIONS:
        _FUNCTIONS[formula] = _function(formula)
    return _FUNCTIONS[formula](x)


def _function(formula: str) -> Callable[[Tensor], Tensor]:
    """Compile a formula, in which only x and the functions of ``_NAMES`` may occur."""
    parsed = list(ast.walk(ast.parse(formula, mode="eval")))
    unknown = {n.id for n in parsed if isinstance(n, ast.Name)} - {"x", *_NAMES}
    if unknown or any(isinstance(n, ast.Attribute) for n in parsed):
        raise NameError(f"it may read x and call {', '.join(_NAMES)}: not {', '.join(unknown) or 'attributes'}")
    return eval(f"lambda x: {formula}", dict(_NAMES))  # (PyTorch imports inside of it and needs the builtins)


@dataclass(frozen=True)
class AtZero:
    """Value and derivative of a function at 0; if the value is 0, the derivative is the limit of f(x)/x."""

    value: float
    slope: float


def at_zero(node: Node, spec: OpSpec) -> AtZero | None:
    """Value and slope of ``node`` = f(x) at x = 0; None if other arguments are tensors, or both are unknown.

    Found by calling f in float64: a clamp is the identity near 0 if 0 lies between its bounds, and a constant
    otherwise. A limit declared in the op table (``at_zero``) replaces the derivative. If f cannot be called, the
    declared limit counts.
    """
    if len(node.all_input_nodes) > 1:
        return None
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: x)
            y = node.target(*args, **kwargs)  # type: ignore[operator]
            (slope,) = torch.autograd.grad(y.sum(), x)
    except Exception:  # a custom operator may raise anything
        return None if spec.at_zero is None else AtZero(0.0, float(spec.at_zero))
    value = float(y.detach())
    limit = float(slope) if spec.at_zero is None or value != 0 else float(spec.at_zero)
    # -x log x has an infinite slope at 0, where x has no relevance
    return AtZero(value, limit if math.isfinite(limit) else 0.0)


def has_offset(origin: AtZero) -> bool:
    """Whether f(0) is a number other than 0: f(x) is then f(0) plus a signal."""
    return origin.value != 0 and math.isfinite(origin.value)


def quotient(y: Tensor, x: Tensor, limit: float) -> Tensor:
    """f(x)/x for y = f(x) with f(0) = 0, and its limit at 0."""
    return torch.where(x == 0, limit, y / x)


def bounded_quotient(y: Tensor, x: Tensor, radius: float) -> Tensor:
    """f(x)/x for y = f(x), with a divisor of at least ``radius`` in magnitude, as f(x)/x has a pole at 0."""
    return y / torch.where(x >= 0, x.clamp(min=radius), x.clamp(max=-radius))


def either_quotient(y: Tensor, x: Tensor, image: Tensor, limit: float, radius: float) -> Tensor:
    """:func:`quotient` where the image of 0 is 0, :func:`bounded_quotient` elsewhere."""
    return torch.where(image == 0, quotient(y, x, limit), bounded_quotient(y, x, radius))


def centred_quotient(y: Tensor, x: Tensor, origin: float, slope: float, radius: float) -> Tensor:
    """(f(x) - f(0))/x for y = f(x), and f'(0) where x is so small that the difference would be rounding."""
    return torch.where(abs(x) < radius, slope, (y - origin) / x)


def emit_slope(graph: fx.Graph, node: Node, x: Node, spec: OpSpec, centred: bool = False) -> Node:
    """Emit f(x)/x for ``node`` = f(x) at the graph's insertion point.

    If f(0) = 0 the quotient is exact, with its limit at 0; otherwise the divisor is kept away from 0. If f has further
    tensor arguments, f(0) is computed in the graph. ``centred`` asks for (f(x) - f(0))/x, where f(0) is a number.
    """
    at_origin = at_zero(node, spec)
    if at_origin is not None and at_origin.value == 0:
        return graph.call_function(quotient, (node, x, at_origin.slope))
    dtype = value(x).dtype if value(x) is not None else torch.float32
    if centred and at_origin is not None and has_offset(at_origin):
        if dtype in (torch.float16, torch.bfloat16):  # f(x) - f(0) would keep two digits
            dtype = torch.float32
            x = graph.call_function(torch.ops.aten._to_copy.default, (x,), {"dtype": dtype})
            node = graph.node_copy(node, lambda _: x)
        slope = (at_origin.value, at_origin.slope, singular_radius(dtype))
        return graph.call_function(centred_quotient, (node, x, *slope))
    radius = singular_radius(dtype)
    if at_origin is not None or len(node.all_input_nodes) == 1:
        return graph.call_function(bounded_quotient, (node, x, radius))
    limit = 1.0 if spec.at_zero is None else float(spec.at_zero)
    zero = graph.call_function(torch.ops.aten.zeros_like.default, (x,))
    image = graph.node_copy(node, lambda n: zero if n is x else n)
    return graph.call_function(either_quotient, (node, x, image, limit, radius))
