"""Slopes f(x)/x of the identity rule: the formulas of the op table, or quotients emitted into the graph."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.analysis.operands import value
from lrp_fx.errors import RuleSetError, locate
from lrp_fx.optable import OpSpec, bind


def _normal_cdf(x: Any) -> Any:
    return torch.rsub(torch.erf(x * math.sqrt(0.5)), 0.5, alpha=-0.5)  # 0.5 + 0.5 erf(..) in one kernel


def _normal_cdf_tanh(x: Any) -> Any:
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

    The square root of the machine epsilon: outside the rule is exact, inside the slope stays far from overflow.
    """
    return math.sqrt(torch.finfo(dtype).eps)


def closed_form(node: Node, spec: OpSpec) -> str:
    """The op table's formula of f(x)/x for ``node`` = f(x), with the node's other arguments written into it.

    Raises:
        RuleSetError: for a formula that cannot be evaluated.
    """
    given = {k: v for k, v in bind(node).items() if not isinstance(v, Node)}
    try:
        formula = ast.unparse(_Filled(given).visit(ast.parse(str(spec.slope), mode="eval")))
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


def emit_slope(graph: fx.Graph, node: Node, x: Node, spec: OpSpec) -> Node:
    """Append the nodes that compute the quotient f(x)/x for ``node`` = f(x) at the graph's insertion point."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    px: Any = fx.Proxy(x, tracer)
    py: Any = fx.Proxy(node, tracer)
    if spec.at_zero is not None:
        return torch.where(px == 0, float(spec.at_zero), py / px).node  # type: ignore[attr-defined]
    radius = singular_radius(value(x).dtype if value(x) is not None else torch.float32)
    held = torch.where(px >= 0, px.clamp(min=radius), px.clamp(max=-radius))
    return (py / held).node
