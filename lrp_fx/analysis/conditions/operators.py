"""Conditions on the operator of a node, as the op table declares it."""

from __future__ import annotations

from lrp_fx.analysis.matching import Candidate, Condition, condition
from lrp_fx.graph.operands import adds_a_number, is_complex


def _of_kind(kind: str, says: str) -> Condition:
    return Condition(says, lambda candidate: candidate.spec.kind == kind)


moves = _of_kind("movement", "Its operator moves, copies or drops entries and changes none.")
is_linear = _of_kind("linear", "Its operator is linear in all its operands together.")
selects = _of_kind("selection", "Its operator picks entries of its operand, such as the largest.")
is_nonlinearity = _of_kind("nonlinearity", "Its operator is a function of one number, applied to each entry.")
is_homogeneous = _of_kind("homogeneous", "Its operator is homogeneous: f(t x) = t^k f(x) for positive t.")
is_function = _of_kind("function", "Its operator is a function of several numbers.")
is_normalization = _of_kind("normalization", "Its operator is a fused normalization.")
is_softmax = _of_kind("softmax", "Its operator is a softmax, or the logarithm of one.")
is_attention = _of_kind("attention", "Its operator is a fused attention.")


@condition
def is_real(candidate: Candidate) -> bool:
    """Its entries are real numbers."""
    return not any(is_complex(n) for n in candidate.live.values())


@condition
def is_of_complex_numbers(candidate: Candidate) -> bool:
    """Its entries are complex: each is a function of two numbers."""
    return any(is_complex(n) for n in candidate.live.values())


@condition
def has_one_live_operand(candidate: Candidate) -> bool:
    """It is applied entry by entry, and relevance reaches one operand only: the others are constants."""
    return candidate.spec.elementwise and len(candidate.live) == 1


@condition
def mixes_numbers(candidate: Candidate) -> bool:
    """Relevance reaches several of its operands, or its entries depend on each other."""
    return not has_one_live_operand.holds(candidate)


@condition
def multiplies_along_dimension(candidate: Candidate) -> bool:
    """It multiplies entries along a dimension."""
    return "count" in candidate.spec.extra


@condition
def has_a_degree(candidate: Candidate) -> bool:
    """It does not multiply entries along a dimension."""
    return not multiplies_along_dimension.holds(candidate)


@condition
def has_a_literal(candidate: Candidate) -> bool:
    """A number is added, such as the 1 in 1 + exp(x)."""
    return adds_a_number(candidate.node, candidate.spec)


@condition
def goes_on(candidate: Candidate) -> bool:
    """It goes into a function of each entry, or into a divisor."""
    return candidate.node in candidate.facts.continued


@condition
def comes_from_a_nonlinearity(candidate: Candidate) -> bool:
    """Its operands are outputs of nonlinearities."""
    return all(n in candidate.nonlinear for n in candidate.live.values())
