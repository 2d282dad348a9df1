"""Conditions on products: elementwise ones, flattened (``analysis.products``), and contractions."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.analysis.products import is_denominator, is_product


@condition
def is_elementwise(candidate: Candidate) -> bool:
    """It multiplies or divides tensors entry by entry, outside of a softmax."""
    return candidate.product is not None


@condition
def has_several_functions(candidate: Candidate) -> bool:
    """Its factors are functions of two tensors or more."""
    assert candidate.product is not None
    return len(candidate.product.groups) > 1


@condition
def has_one_function(candidate: Candidate) -> bool:
    """Its factors are functions of one and the same tensor."""
    assert candidate.product is not None
    return len(candidate.product.groups) < 2


@condition
def has_a_statistic(candidate: Candidate) -> bool:
    """One of its factors depends only on a reduction (mean, norm) of a tensor, the others are affine images of it."""
    assert candidate.product is not None
    return bool(candidate.product.statistics)


@condition
def is_not_linear(candidate: Candidate) -> bool:
    """It has several factors, or one that is multiplied more than once or divides."""
    assert candidate.product is not None
    return not candidate.product.once


@condition
def weighs(candidate: Candidate) -> bool:
    """Some of its factors only weigh the others: they have no sign (sigmoid, exp), or are outputs of nonlinearities."""
    assert candidate.product is not None
    return candidate.product.gated


@condition
def weighs_nothing(candidate: Candidate) -> bool:
    """None of its factors only weighs the others."""
    return not weighs.holds(candidate)


@condition
def weighs_a_state(candidate: Candidate) -> bool:
    """Its gates weigh a state that is carried from step to step."""
    assert candidate.product is not None
    return candidate.product.recurrent


@condition
def is_steered(candidate: Candidate) -> bool:
    """One of its factors only steers what is written to a state or read from it."""
    assert candidate.product is not None
    return candidate.product.selective


@condition
def contracts(candidate: Candidate) -> bool:
    """It sums products of entries (matmul, convolution, einsum), or solves a linear system."""
    return candidate.spec.kind in ("product", "quotient") and not is_product(candidate.facts, candidate.node)


@condition
def has_several_live_factors(candidate: Candidate) -> bool:
    """Relevance reaches two of its factors or more."""
    return len(candidate.factors) > 1


@condition
def has_one_live_factor(candidate: Candidate) -> bool:
    """Relevance reaches one of its factors at most."""
    return len(candidate.factors) < 2


@condition
def divides_by_a_signal(candidate: Candidate) -> bool:
    """Relevance reaches its divisor, the matrix of a linear system."""
    return any(is_denominator(candidate.facts, candidate.node, slot) for slot in candidate.live)


@condition
def contracts_a_state(candidate: Candidate) -> bool:
    """Its weights are decays, or it weighs a state that is carried from step to step."""
    return candidate.node in candidate.facts.recurrent


@condition
def contracts_a_steering_factor(candidate: Candidate) -> bool:
    """One of its factors only steers what is written to a state or read from it."""
    return candidate.node in candidate.facts.selective


@condition
def mixes_by_weights(candidate: Candidate) -> bool:
    """Some of its factors, but not all, have no sign (sigmoid, exp, ...)."""
    return 0 < len(_weights(candidate)) < len(candidate.factors)


@condition
def is_no_attention(candidate: Candidate) -> bool:
    """Its factors without sign do not all come from a softmax: that is attention, whose own rules apply."""
    return not all(_is_softmax(candidate.facts, n) for n in _weights(candidate))


def _weights(candidate: Candidate) -> list[Node]:
    return [n for n in candidate.factors if n in candidate.facts.positive]


def _is_softmax(facts: Facts, node: Node) -> bool:
    """Whether a node is a softmax, through movement."""
    while node in facts.specs and facts.specs[node].kind == "movement" and len(facts.operands[node]) == 1:
        node = next(iter(facts.operands[node].values()))
    return node in facts.manual_softmax or (node in facts.specs and facts.specs[node].kind == "softmax")
