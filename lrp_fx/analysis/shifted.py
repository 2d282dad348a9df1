"""Products with factors of the form constant + signal, and their expansion into a sum.

``x * (1 + s)`` and ``x + x * s`` are one function, so relevance must not depend on the spelling. A constant is no
factor that could get relevance: c x is linear in x, and x s is a product of two signals. So a rule for products divides
each term by the number of signals in it. In (1 + a) (1 + b) the term 1 is a constant that the model adds.
"""

from __future__ import annotations

from lrp_fx.analysis.conditions.shifted import expand
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import SHIFTED


def find_shifted(facts: Facts) -> None:
    """Fill ``facts.shifted``, from the end of every chain of products."""
    for node in reversed(facts.specs):
        candidate = before_rules(facts, node)
        if SHIFTED.match(candidate):
            facts.shifted[node] = expand(candidate)
