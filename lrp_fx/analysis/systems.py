"""Triangular systems: (C + S) Y = B with a constant diagonal C and a signal S in one triangle.

They are solved row by row, y_i = (b_i - sum_j s_ij y_j) / c_i, and that is how relevance goes: a product of s_ij and
y_j hands half to each. However the system is spelled, this sums up to what the rows give: with u = (C + S/2)^-T g, the
cotangent of B is u and that of S is -u Y^T / 2. Where B is a constant, so is Y_0 = C^-1 B, of which S Y_0 is linear in
S: the cotangent of S is -u (Y_0 + Y)^T / 2 then, and Y_0 is what the model adds. S is nilpotent, so that nothing here
can be singular: C + S/2 has the diagonal of C + S.
"""

from __future__ import annotations

from lrp_fx.analysis.conditions.systems import system
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import TRIANGULAR_SYSTEM


def find_systems(facts: Facts) -> None:
    """Fill ``facts.systems``, an inverse before the products that it goes into."""
    for node in facts.specs:
        candidate = before_rules(facts, node)
        if TRIANGULAR_SYSTEM.match(candidate):
            facts.systems[node] = system(candidate)
