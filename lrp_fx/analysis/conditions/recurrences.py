"""Conditions on the products of a recurrence: weights, and the states that they weigh (``analysis.gates``)."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.conditions.operators import is_real
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.analysis.products import is_product
from lrp_fx.graph.operands import addends


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
    """One of its factors has a sign: the signal that is weighed."""
    return any(n not in candidate.facts.positive for n in candidate.carrying.values())


@condition
def has_a_weight(candidate: Candidate) -> bool:
    """One of its factors is a weight: it has no sign (sigmoid, exp, ...)."""
    return bool(_weights(candidate))


@condition
def weighs_a_state(candidate: Candidate) -> bool:
    """One of its factors with a sign is a state: a sum with a product with a weight in it."""
    return any(n in candidate.facts.states for n in candidate.carrying.values() if n not in candidate.facts.positive)


@condition
def weighs_by_a_decay(candidate: Candidate) -> bool:
    """One of its factors without sign is a decay: it has an exponential in it."""
    return any(n in candidate.facts.decays for n in _weights(candidate))


@condition
def goes_into_a_state(candidate: Candidate) -> bool:
    """It goes into the state of a recurrence."""
    return candidate.node in candidate.facts.recurrent


@condition
def adds_signals(candidate: Candidate) -> bool:
    """It adds or subtracts several real tensors that carry relevance, entry by entry."""
    spec = candidate.spec
    sums = spec.kind == "linear" and spec.elementwise and len(candidate.carrying) > 1
    return sums and is_real.holds(candidate) and bool(addends(candidate.node, spec))


@condition
def adds_a_weighted_state(candidate: Candidate) -> bool:
    """One of them comes from a layer whose weight is applied to its own results of earlier steps."""
    return any(n in candidate.facts.fed_back for n in candidate.carrying.values())


@condition
def goes_into_nonlinearities(candidate: Candidate) -> bool:
    """All its readers are elementwise nonlinearities, through movement and sums."""
    facts, stack, seen = candidate.facts, [candidate.node], {candidate.node}
    while stack:
        node = stack.pop()
        for user in node.users:
            spec = facts.specs.get(user)
            if spec is None:
                return False
            if spec.kind == "movement" or (spec.kind == "linear" and spec.elementwise):
                stack += [user] if user not in seen else []
                seen.add(user)
            elif not (spec.elementwise and facts.origin[user] is facts.origin[node]):
                return False
    return True


@condition
def has_a_recurrent_weight(candidate: Candidate) -> bool:
    """It is a layer whose weight is applied to its own results of earlier steps."""
    return candidate.node in candidate.facts.layers and candidate.node in candidate.facts.fed_back


@condition
def reads_tensors_side_by_side(candidate: Candidate) -> bool:
    """Its input is a concatenation of several tensors that carry relevance."""
    spec = candidate.facts.specs.get(candidate.first)
    side_by_side = spec is not None and spec.kind == "movement" and not spec.elementwise  # not one or the other
    return side_by_side and len(candidate.facts.operands[candidate.first]) > 1


def _weights(candidate: Candidate) -> list[Node]:
    return [n for n in candidate.carrying.values() if n in candidate.facts.positive]
