"""Slopes f(x)/x of the identity rule, emitted into the graph from the formulas of the op table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.analysis.operands import value
from lrp_fx.errors import RuleSetError, locate
from lrp_fx.optable import OpSpec, bind


def _normal_cdf(x: Any) -> Any:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def _normal_cdf_tanh(x: Any) -> Any:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


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


def emit_slope(graph: fx.Graph, node: Node, x: Node, spec: OpSpec) -> Node:
    """Append the nodes that compute f(x)/x for ``node`` = f(x) at the graph's insertion point."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    px: Any = fx.Proxy(x, tracer)
    py: Any = fx.Proxy(node, tracer)
    if spec.slope is not None:
        names = {k: v for k, v in bind(node).items() if not isinstance(v, Node)}
        try:
            slope = eval(spec.slope, {"__builtins__": {}}, {**_NAMES, **names, "x": px, "y": py})
        except Exception as error:
            raise RuleSetError(
                f"slope {spec.slope!r} of {spec.name} cannot be evaluated at {locate(node)}: {error}"
            ) from error
    elif spec.at_zero is not None:
        slope = torch.where(px == 0, float(spec.at_zero), py / px)
    else:
        radius = singular_radius(value(x).dtype if value(x) is not None else torch.float32)
        held = torch.where(px >= 0, px.clamp(min=radius), px.clamp(max=-radius))
        slope = py / held
    return slope.node
