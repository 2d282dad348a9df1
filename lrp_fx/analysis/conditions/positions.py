"""Conditions on products with a position table (``analysis.rotary``)."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.graph.operands import Slot, slots


@condition
def multiplies(candidate: Candidate) -> bool:
    """It multiplies tensors entry by entry."""
    return candidate.spec.kind == "product" and candidate.spec.elementwise


@condition
def has_one_signal(candidate: Candidate) -> bool:
    """Exactly one of its factors can carry relevance."""
    return len(candidate.carrying) == 1


@condition
def has_a_table(candidate: Candidate) -> bool:
    """One of its other factors is a cosine or a sine of constants, also moved and scaled."""
    return bool(multiplying(candidate))


def multiplying(candidate: Candidate) -> dict[Slot, Node]:
    """The factors that are position tables."""
    factors = slots(candidate.node, candidate.spec.args)
    return {slot: n for slot, n in factors.items() if n in candidate.facts.tables}
