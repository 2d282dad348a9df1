"""Conditions on the softmax of a written-out attention, and the walks that find the tensors of the attention."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, condition


@condition
def is_softmax(candidate: Candidate) -> bool:
    """It is a softmax, or the division of a written-out one."""
    return candidate.spec.kind == "softmax" or candidate.node in candidate.facts.softmaxes


@condition
def mixes_values(candidate: Candidate) -> bool:
    """Through movement and scaling, it goes into a contraction with another tensor that carries relevance."""
    mixed, weights = contraction_after(candidate.facts, candidate.node)
    return mixed is not None and any(n is not weights for n in candidate.facts.operands[mixed].values())


@condition
def reads_scores(candidate: Candidate) -> bool:
    """Its argument is a contraction of two tensors that carry relevance, also masked, scaled and shifted."""
    return argument(candidate.facts, candidate.node) in candidate.facts.contraction


def contracts(facts: Facts, node: Node) -> bool:
    """Whether ``node`` contracts two tensors that carry relevance."""
    spec = facts.specs.get(node)
    return spec is not None and spec.kind == "product" and not spec.elementwise and len(facts.operands[node]) == 2


def contraction_after(facts: Facts, node: Node) -> tuple[Node | None, Node]:
    """The contraction that a node goes into, through movement and scaling, and its operand there."""
    while True:
        users = [u for u in node.users if node in facts.operands.get(u, {}).values()]
        contractions = [u for u in users if contracts(facts, u)]
        if contractions:
            return contractions[0], node
        moved = [u for u in users if facts.specs[u].kind == "movement" or _is_scaling(facts, u)]
        if len(moved) != 1:
            return None, node
        node = moved[0]


def _is_scaling(facts: Facts, node: Node) -> bool:
    spec = facts.specs[node]
    return spec.kind in ("linear", "product", "quotient") and spec.elementwise and len(facts.operands[node]) == 1


def argument(facts: Facts, softmax: Node) -> Node:
    """The argument of a softmax."""
    softmax = facts.softmaxes.get(softmax, softmax)
    return next(iter(facts.operands[softmax].values()))
