"""Products with factors that are a constant plus a signal, and what they are the sum of.

``x * (1 + s)`` and ``x + x * s`` are one function, so relevance must not depend on which of them the author wrote. The
constant is no factor that could be credited: c x is linear in x, and x s is a product of two. So a rule for products
divides each term by the number of signals in it; in (1 + a) (1 + b), the term 1 is what the model really adds.
"""

from __future__ import annotations

from lrp_fx.analysis.conditions.shifted import expand
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import SHIFTED


def find_shifted(facts: Facts) -> None:
    """Fill ``facts.shifted``, the end of every chain of products first."""
    for node in reversed(facts.specs):
        candidate = before_rules(facts, node)
        if SHIFTED.match(candidate):
            facts.shifted[node] = expand(candidate)
