"""Triangular systems: (C + S) Y = B with a constant diagonal C and a signal S in one triangle.

Row by row, y_i = (b_i - sum_j s_ij y_j) / c_i, and a product of s_ij and y_j gives half of its relevance to each. For
the whole system this amounts to the following, in every spelling. With u = (C + S/2)^-T g, the cotangent of B is u and
that of S is -u Y^T / 2. If B is a constant, so is Y_0 = C^-1 B, and S Y_0 is linear in S: the cotangent of S is then
-u (Y_0 + Y)^T / 2, and Y_0 is a constant that the model adds. C + S/2 has the diagonal of C + S, so it is singular only
if C + S is.
"""

from __future__ import annotations

from lrp_fx.analysis.conditions.systems import system
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import TRIANGULAR_SYSTEM


def find_systems(facts: Facts) -> None:
    """Fill ``facts.systems``, in graph order: an inverse before the products with it."""
    for node in facts.specs:
        candidate = before_rules(facts, node)
        if TRIANGULAR_SYSTEM.match(candidate):
            facts.systems[node] = system(candidate)
