"""Triangular systems, with relevance as in a solution row by row (:mod:`lrp_fx.analysis.systems`)."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import System
from lrp_fx.graph.operands import all_slots
from lrp_fx.rewrite.site import Site
from lrp_fx.rules.formulas import without_triangle
from lrp_fx.rules.functions import identity_rule

aten = torch.ops.aten


def solved(site: Site) -> Node:
    """The solution Y, with relevance through (C + S/2)^-1 (B - S Z) for a detached Z = Y/2.

    If B is a constant, Z = (Y_0 + Y)/2, and relevance goes through Y_0 - (C + S/2)^-1 S Z.
    """
    system = site.decision.system
    assert system is not None
    anchor = site.node.next
    with site.graph.inserting_before(anchor):
        carrier = _Emit(site, system).carrier()
        value = site.graph.call_function(aten.detach.default, (site.node,))
        ones = site.graph.call_function(aten.ones_like.default, (value,))
        new = site.graph.call_function(identity_rule, (value, carrier, ones))
    return site.take_over(anchor, new)


class _Emit:
    """Emits nodes behind the one that solves a system."""

    def __init__(self, site: Site, system: System) -> None:
        self.site, self.system = site, system
        self.matrix = all_slots(site.copies[system.reader])[system.matrix]
        self.right = None if system.right is None else site.operand(system.right)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.site.graph.call_function(target, args, kwargs)

    def carrier(self) -> Node:
        """A function of S, and of B if that is a signal, whose gradient is the rule."""
        system, value = self.system, self.call(aten.detach.default, self.site.node)
        if self.right is not None and system.right in self.site.decision.live:
            product = self._triangle_times(self._column(self.call(aten.mul.Tensor, value, 0.5)))
            return self._without_column(self._solve(self.call(aten.sub.Tensor, self._column(self.right), product)))
        matrix = self.call(aten.detach.default, self.matrix)
        flags = (system.left, system.unit, system.vector)
        alone = self.call(without_triangle, matrix, self.right, *flags)
        mean = self.call(aten.mul.Tensor, self.call(aten.add.Tensor, alone, value), 0.5)
        rest = self._without_column(self._solve(self._triangle_times(self._column(mean))))
        return self.call(aten.sub.Tensor, alone, rest)

    def _triangle(self) -> Node:
        """S."""
        side, first = (aten.triu.default, 1) if self.system.upper else (aten.tril.default, -1)
        return self.call(side, self.matrix, first)

    def _triangle_times(self, other: Node) -> Node:
        factors = (self._triangle(), other) if self.system.left else (other, self._triangle())
        return self.call(aten.matmul.default, *factors)

    def _solve(self, right: Node) -> Node:
        """(C + S/2)^-1 times ``right``."""
        system = self.system
        half = self.call(aten.mul.Tensor, self._triangle(), 0.5)
        mean = self.call(aten.detach.default, self.call(aten.sub.Tensor, self.matrix, half))
        flags = {"upper": system.upper, "left": system.left, "unitriangular": system.unit}
        return self.call(aten.linalg_solve_triangular.default, mean, right, **flags)

    def _column(self, value: Node) -> Node:
        return self.call(aten.unsqueeze.default, value, -1) if self.system.vector else value

    def _without_column(self, value: Node) -> Node:
        return self.call(aten.squeeze.dim, value, -1) if self.system.vector else value
