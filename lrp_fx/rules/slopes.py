"""Slopes f(x)/x of the identity rule: the formulas of the op table, or quotients emitted into the graph."""

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


def _wide(x: Any) -> Any:
    """In half precision 1 - erf loses what is left of it far from 0."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _normal_cdf(x: Any) -> Any:
    x = _wide(x)
    return torch.rsub(torch.erf(x * math.sqrt(0.5)), 0.5, alpha=-0.5)  # 0.5 + 0.5 erf(..) in one kernel


def _normal_cdf_tanh(x: Any) -> Any:
    x = _wide(x)
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
    """Where f(0) != 0 the slope f(x)/x is singular: below this |x| the divisor is held at sign(x) times it.

    Outside the rule is exact, inside the slope stays far from overflow: the square root of the machine epsilon in
    single and double precision. What counts is the largest number: bfloat16 has the radius of float32, and float16
    one that lets a slope reach 2^10.
    """
    if dtype is torch.float16:
        return 2.0**-10
    return math.sqrt(torch.finfo(torch.float32 if dtype is torch.bfloat16 else dtype).eps)


def closed_form(node: Node, spec: OpSpec) -> str:
    """The op table's formula of f(x)/x for ``node`` = f(x), with the node's other arguments written into it.

    Raises:
        RuleSetError: for a formula that cannot be evaluated.
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
    """Writes values in place of names."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.values[node.id]) if node.id in self.values else node


#: formulas that were used, as functions: what compiles a graph looks into functions, but evaluates no text
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {}


def closed_slope(formula: str, x: Tensor) -> Tensor:
    """What a formula makes of x.

    Raises:
        NameError: for a formula of other names than x and the functions it may have.
    """
    if formula not in _FUNCTIONS:
        _FUNCTIONS[formula] = _function(formula)
    return _FUNCTIONS[formula](x)


def _function(formula: str) -> Callable[[Tensor], Tensor]:
    """A formula as a function; it may read x and call the functions above, nothing else."""
    parsed = list(ast.walk(ast.parse(formula, mode="eval")))
    unknown = {n.id for n in parsed if isinstance(n, ast.Name)} - {"x", *_NAMES}
    if unknown or any(isinstance(n, ast.Attribute) for n in parsed):
        raise NameError(f"it may read x and call {', '.join(_NAMES)}: not {', '.join(unknown) or 'attributes'}")
    return eval(f"lambda x: {formula}", dict(_NAMES))  # with builtins: below this frame PyTorch imports


@dataclass(frozen=True)
class AtZero:
    """A function at 0: its value, and its derivative (the limit of f(x)/x where the value is 0)."""

    value: float
    slope: float


def at_zero(node: Node, spec: OpSpec) -> AtZero | None:
    """What ``node`` = f(x) makes of x = 0 with its other arguments; None where these are tensors.

    That is found out by calling it: a clamp is the identity near 0 if its bounds lie on either side, and a constant if
    they do not. An operator that cannot be called on a number in double precision has the limit that is declared.
    """
    if len(node.all_input_nodes) > 1:
        return None
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: x)
            y = node.target(*args, **kwargs)  # type: ignore[operator]
            (slope,) = torch.autograd.grad(y.sum(), x)
    except Exception:  # whatever an operator of the user's own does
        return None if spec.at_zero is None else AtZero(0.0, float(spec.at_zero))
    value = float(y.detach())
    limit = float(slope) if spec.at_zero is None or value != 0 else float(spec.at_zero)
    return AtZero(value, limit if math.isfinite(limit) else 0.0)  # -x log x is steep at 0, where x has no relevance


def emit_slope(graph: fx.Graph, node: Node, x: Node, spec: OpSpec) -> Node:
    """Append the nodes that compute the quotient f(x)/x for ``node`` = f(x) at the graph's insertion point.

    Exact where f(0) = 0, with its limit at 0; where f(0) != 0 the divisor is held off 0.
    """
    tracer = fx.proxy.GraphAppendingTracer(graph)
    px: Any = fx.Proxy(x, tracer)
    py: Any = fx.Proxy(node, tracer)
    at_origin = at_zero(node, spec)
    if at_origin is not None and at_origin.value == 0:
        return torch.where(px == 0, at_origin.slope, py / px).node  # type: ignore[attr-defined]
    radius = singular_radius(value(x).dtype if value(x) is not None else torch.float32)
    divisor = torch.where(px >= 0, px.clamp(min=radius), px.clamp(max=-radius))
    if at_origin is not None or len(node.all_input_nodes) == 1:
        return (py / divisor).node
    limit = 1.0 if spec.at_zero is None else float(spec.at_zero)
    zero = graph.call_function(torch.ops.aten.zeros_like.default, (x,))
    image = graph.node_copy(node, lambda n: zero if n is x else n)
    passes: Any = fx.Proxy(image, tracer) == 0
    exact: Any = torch.where(px == 0, limit, py / px)
    return torch.where(passes, exact, py / divisor).node  # type: ignore[attr-defined]
