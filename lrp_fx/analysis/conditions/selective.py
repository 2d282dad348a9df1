"""Conditions on products with selective parameters (``analysis.selective``)."""

from __future__ import annotations

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.graph.operands import Slot, value
from lrp_fx.operators.table import bind, op_name


@condition
def multiplies_signed(candidate: Candidate) -> bool:
    """Two of its factors or more carry relevance and have a sign."""
    return len(signed(candidate.facts, candidate.node)) > 1


@condition
def has_one_state(candidate: Candidate) -> bool:
    """Exactly one of its factors with a sign is a state that is carried from step to step."""
    return len(states(candidate)) == 1


@condition
def has_no_state(candidate: Candidate) -> bool:
    """None of its factors with a sign is a state that is carried from step to step."""
    return not states(candidate)


@condition
def sums_over_the_state(candidate: Candidate) -> bool:
    """A dimension of its state is summed over."""
    return bool(sizes_read(candidate))


@condition
def has_one_decayed(candidate: Candidate) -> bool:
    """Exactly one of its factors with a sign is weighed by a decay."""
    return len(decayed(candidate)) == 1


@condition
def is_added_to_a_state(candidate: Candidate) -> bool:
    """It is added to a state."""
    return candidate.node in candidate.facts.written


@condition
def has_one_along_what_is_read(candidate: Candidate) -> bool:
    """Exactly one of its factors is the only one along a dimension that is summed over where a state is read."""
    return len(along(candidate)) == 1


def signed(facts: Facts, node: Node) -> dict[Slot, Node]:
    """The carrying factors of a product that have a sign."""
    spec = facts.specs[node]
    if spec.kind != "product":
        return {}
    return {slot: n for slot, n in facts.operands[node].items() if n not in facts.positive and slot.name in spec.args}


def states(candidate: Candidate) -> set[Slot]:
    """Slots of the factors that are states."""
    factors = signed(candidate.facts, candidate.node)
    return {slot for slot, n in factors.items() if n in candidate.facts.carried}


def decayed(candidate: Candidate) -> set[Slot]:
    """Slots of the factors that are, through movement, elementwise products of a decay and one signed tensor."""
    factors = signed(candidate.facts, candidate.node)
    return {slot for slot, n in factors.items() if _is_decayed(candidate.facts, n)}


def sizes_read(candidate: Candidate) -> set[int]:
    """Sizes of the dimensions of its one state that are summed over."""
    (slot,) = states(candidate)
    return _summed_over(candidate.facts, candidate.node, candidate.carrying[slot], slot)


def along(candidate: Candidate) -> set[Slot]:
    """Slots of the factors that are the only ones along a dimension that reads of a state sum over."""
    read_sizes = candidate.facts.read_sizes
    return {slot for slot in candidate.carrying if _spans_alone(candidate.facts, candidate.node, slot, read_sizes)}


def behind(facts: Facts, node: Node) -> Node:
    """The tensor that ``node`` was before it was moved."""
    while node in facts.specs and facts.specs[node].kind == "movement" and len(facts.operands[node]) == 1:
        node = next(iter(facts.operands[node].values()))
    return node


def _is_decayed(facts: Facts, node: Node) -> bool:
    """Whether ``node`` is, through movement, an elementwise product of a decay and one signed tensor."""
    node = behind(facts, node)
    return (
        node in facts.recurrent
        and facts.specs[node].elementwise
        and any(n in facts.decays for n in facts.operands[node].values())
    )


def _shape(node: Node) -> tuple[int, ...]:
    """The sizes of a node's value, 0 for dynamic ones."""
    tensor = value(node)
    return tuple(d if isinstance(d, int) else 0 for d in tensor.shape) if isinstance(tensor, torch.Tensor) else ()


def _summed_over(facts: Facts, node: Node, state: Node, slot: Slot) -> set[int]:
    """Sizes of the dimensions of a state that a read of it sums over."""
    shape, spec = _shape(state), facts.specs[node]
    if op_name(node) == "aten.einsum":
        terms, _, out = str(bind(node)["equation"]).replace(" ", "").partition("->")
        letters = terms.split(",")[slot.position or 0]
        return {n for letter, n in zip(letters, shape, strict=False) if letter not in out}
    if not spec.elementwise:
        columns = spec.extra.get("matrices") and slot.name == spec.args[1] and len(shape) > 1
        return {shape[-2 if columns else -1]}
    sums = [u for u in node.users if u in facts.specs and facts.specs[u].reduces]
    return {size for u in sums for size in _removed(_shape(node), bind(u).get("dim"))}


def _removed(shape: tuple[int, ...], dims: object) -> list[int]:
    listed = [dims] if isinstance(dims, int) else dims if isinstance(dims, (list, tuple)) else []
    return [shape[d] for d in listed]


def _spans_alone(facts: Facts, node: Node, slot: Slot, sizes: set[int]) -> bool:
    """Whether one operand of an outer product is the only one along a dimension of one of these sizes."""
    out, operands = _shape(node), facts.operands[node]
    shape = (1,) * (len(out) - len(_shape(operands[slot]))) + _shape(operands[slot])
    others = [(1,) * (len(out) - len(_shape(n))) + _shape(n) for other, n in operands.items() if other != slot]
    return any(out[d] in sizes - {0} and shape[d] == out[d] and all(o[d] == 1 for o in others) for d in range(len(out)))
