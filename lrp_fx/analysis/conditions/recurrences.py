"""Conditions on the products of a recurrence: what weighs, and whether it weighs a state (``analysis.gates``)."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.analysis.products import is_product


@condition
def multiplies_signals(candidate: Candidate) -> bool:
    """It multiplies or divides several tensors that carry relevance, entry by entry."""
    return is_product(candidate.facts, candidate.node) and len(candidate.carrying) > 1


@condition
def contracts_signals(candidate: Candidate) -> bool:
    """It sums products of several tensors that carry relevance."""
    return candidate.spec.kind == "product" and not candidate.spec.elementwise and len(candidate.carrying) > 1


@condition
def has_a_signal(candidate: Candidate) -> bool:
    """One of its factors has a sign: it is what is weighed."""
    return any(n not in candidate.facts.positive for n in candidate.carrying.values())


@condition
def has_a_weight(candidate: Candidate) -> bool:
    """One of its factors is a weight: it has no sign (sigmoid, exp, ...)."""
    return bool(_weights(candidate))


@condition
def weighs_a_state(candidate: Candidate) -> bool:
    """One of its factors with a sign is a state: a sum that holds a product with a weight already."""
    return any(n in candidate.facts.states for n in candidate.carrying.values() if n not in candidate.facts.positive)


@condition
def weighs_by_a_decay(candidate: Candidate) -> bool:
    """One of its factors without sign is a decay: there is an exponential in it."""
    return any(n in candidate.facts.decays for n in _weights(candidate))


@condition
def goes_into_a_state(candidate: Candidate) -> bool:
    """It goes into a state that the weights of a recurrence weigh."""
    return candidate.node in candidate.facts.recurrent


def _weights(candidate: Candidate) -> list[Node]:
    return [n for n in candidate.carrying.values() if n in candidate.facts.positive]
