"""Selective parameters: signed tensors that only say what a state takes in, and what is read out of it.

In the recurrence h' = a h + B x, y = C h of a state space the decays a are gates; B and C have signs of their own, yet
MambaLRP (arXiv:2406.07592) holds them constant as well. They are told from the signal by where they stand:

- a tensor that multiplies a carried state *reads* it;
- of an outer product that goes into a state, the factor along the dimension that reads sum over *writes*;
- a matrix weighed by decays *mixes* what it is contracted with (the parallel form, chunk by chunk).
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.gates import adds, carries_on
from lrp_fx.graph.operands import Slot, value
from lrp_fx.operators.table import bind, op_name


def find_selective(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.selective``: the slots of a product whose operands read, write or mix."""
    if not facts.recurrent:
        return
    carried, read_sizes = _carried(graph, facts), set[int]()
    for node in list(facts.specs):
        signed = _signed(facts, node)
        if len(signed) < 2:
            continue
        states = [slot for slot, n in signed.items() if n in carried]
        mixing = [slot for slot, n in signed.items() if _is_decayed(facts, n)]
        if len(states) == 1:
            sizes = _summed_over(facts, node, signed[states[0]], states[0])
            if sizes:  # else it is an output gate
                facts.selective[node] = set(signed) - set(states)
                read_sizes |= sizes
        elif not states and len(mixing) == 1:
            facts.selective[node] = set(mixing)
    for node in _written(facts, carried):
        along = {slot for slot in facts.operands[node] if _spans_alone(facts, node, slot, read_sizes)}
        if len(along) == 1:
            facts.selective[node] = along


def _signed(facts: Facts, node: Node) -> dict[Slot, Node]:
    """The carrying factors of a product that have a sign."""
    spec = facts.specs[node]
    if spec.kind != "product":
        return {}
    return {slot: n for slot, n in facts.operands[node].items() if n not in facts.positive and slot.name in spec.args}


def _behind(facts: Facts, node: Node) -> Node:
    """The tensor that ``node`` is, before it was moved."""
    while node in facts.specs and facts.specs[node].kind == "movement" and len(facts.operands[node]) == 1:
        node = next(iter(facts.operands[node].values()))
    return node


def _adds(facts: Facts, node: Node) -> bool:
    return node in facts.specs and adds(node, facts.specs[node])


def _written(facts: Facts, carried: set[Node]) -> list[Node]:
    """Products of several signed tensors that are added to a state."""
    added = [_behind(facts, n) for node in carried if _adds(facts, node) for n in facts.operands[node].values()]
    return [n for n in dict.fromkeys(added) if n in facts.specs and n not in carried and len(_signed(facts, n)) > 1]


def _carried(graph: Graph, facts: Facts) -> set[Node]:
    """Sums that hold a recurrent product or go into one that is added to the next, and what carries them on."""
    weighed = set(facts.recurrent)
    steps = [n for n in facts.recurrent if any(_adds(facts, user) for user in n.users)]
    begun = {_behind(facts, n) for step in steps for n in facts.operands[step].values() if n not in facts.positive}
    carried = {n for n in begun if _adds(facts, n)}
    for node in graph.nodes:
        spec = facts.specs.get(node)
        if spec is None or node in facts.positive:
            continue
        operands = list(facts.operands[node].values())
        sums = adds(node, spec) or (spec.kind == "linear" and spec.reduces)
        if spec.kind == "movement" and any(n in weighed for n in operands):
            weighed.add(node)
        begins = sums and any(n in weighed for n in operands)
        weighs = spec.kind == "product" and node in facts.recurrent and not spec.elementwise
        if begins or weighs or (any(n in carried for n in operands) and carries_on(facts, node, spec, operands)):
            carried.add(node)
    return carried


def _is_decayed(facts: Facts, node: Node) -> bool:
    """Whether ``node`` is, through movement, an elementwise product of a decay and one signed tensor."""
    node = _behind(facts, node)
    return (
        node in facts.recurrent
        and facts.specs[node].elementwise
        and any(n in facts.decays for n in facts.operands[node].values())
    )


def _shape(node: Node) -> tuple[int, ...]:
    """Sizes; 0 for one that is not a number."""
    found = value(node)
    return tuple(d if isinstance(d, int) else 0 for d in found.shape) if isinstance(found, torch.Tensor) else ()


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
    """Whether one operand of an outer product alone has a dimension of one of these sizes."""
    out, operands = _shape(node), facts.operands[node]
    mine = (1,) * (len(out) - len(_shape(operands[slot]))) + _shape(operands[slot])
    others = [(1,) * (len(out) - len(_shape(n))) + _shape(n) for other, n in operands.items() if other != slot]
    return any(out[d] in sizes - {0} and mine[d] == out[d] and all(o[d] == 1 for o in others) for d in range(len(out)))
