"""Conditions on a softmax that is written out: ``e / e.sum(dim)`` with ``e = exp(z)``.

They are asked of the division. Every node of it keeps the natural gradient, which together is that of a softmax.
"""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.operators.table import bind, op_name


def parts(candidate: Candidate) -> tuple[Node, Node]:
    """Numerator and denominator of a division."""
    bound = bind(candidate.node)
    return bound["self"], bound["other"]


@condition
def divides_tensors(candidate: Candidate) -> bool:
    """It divides one tensor by another, entry by entry."""
    quotient = candidate.spec.kind == "quotient" and candidate.spec.elementwise
    return quotient and all(isinstance(part, Node) for part in parts(candidate))


@condition
def has_an_exponential(candidate: Candidate) -> bool:
    """Its numerator is an exponential that carries relevance."""
    exponential, _ = parts(candidate)
    return op_name(exponential) == "aten.exp" and candidate.facts.carries(exponential)


@condition
def divides_by_its_sum(candidate: Candidate) -> bool:
    """Its denominator is the sum of its numerator."""
    exponential, total = parts(candidate)
    return op_name(total) == "aten.sum" and total.args[0] is exponential


@condition
def is_the_only_reader(candidate: Candidate) -> bool:
    """Nothing else reads its numerator."""
    exponential, total = parts(candidate)
    return set(exponential.users) == {candidate.node, total}


@condition
def is_the_only_reader_of_the_sum(candidate: Candidate) -> bool:
    """Nothing else reads its denominator."""
    return set(parts(candidate)[1].users) == {candidate.node}


@condition
def is_part_of_a_softmax(candidate: Candidate) -> bool:
    """It is the exponential, the sum or the division of a softmax that is written out."""
    return candidate.node in candidate.facts.manual_softmax
