"""Softmaxes that are written out: every node of one is left to the natural gradient, which together is softmax's."""

from __future__ import annotations

from lrp_fx.analysis.conditions.softmax import parts
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import SOFTMAX_WRITTEN_OUT


def find_softmaxes(facts: Facts) -> None:
    """Fill ``facts.manual_softmax``."""
    for node in facts.specs:
        candidate = before_rules(facts, node)
        if SOFTMAX_WRITTEN_OUT.match(candidate):
            facts.manual_softmax |= {node, *parts(candidate)}
