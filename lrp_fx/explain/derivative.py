"""Relevance has no derivative: a second one through a rewritten graph is an error.

Rules hold slopes, stabilisers and statistics constant. Autograd would differentiate the rest alone, and return a number
that is not the derivative of relevance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.errors import DerivativeError
from lrp_fx.graph.signed_function import SignedFunction
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.rules.table import entry

_MESSAGE = (
    "relevance cannot be differentiated: its rules hold slopes, stabilisers and statistics constant, so that autograd "
    "would return another number.\nRemedy: rules='gradient' has second derivatives; for those of relevance take finite "
    "differences of explain()."
)


def has_derivative(ruleset: RuleSet) -> bool:
    """Whether what a rule set computes can be differentiated: where no rule changes the gradient."""
    tables = (ruleset.rules, *ruleset.overrides.values())
    chosen = [(role, rule) for table in tables for role, rule in table.items()]
    return not any(rule.custom or entry(role, rule.name).changes_gradient for role, rule in chosen)


def differentiable_once(arguments: Any) -> Any:
    """Arguments of a call whose gradients, taken with ``create_graph=True``, raise when they are differentiated.

    Raises:
        DerivativeError: when a derivative of such a gradient is computed.
    """
    if not torch.is_grad_enabled():
        return arguments
    return pytree.tree_map_only(Tensor, lambda t: _Once.apply(t) if t.requires_grad else t, arguments)


class _Once(SignedFunction):
    """x; its gradient depends on x, by a function without derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return g
        (x,) = ctx.saved_tensors
        return _Relevance.apply(g, x)  # type: ignore[no-any-return]


class _Relevance(SignedFunction):
    """g, as a function of x that has no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor) -> Tensor:
        return g.view_as(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        raise DerivativeError(_MESSAGE)
