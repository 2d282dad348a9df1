"""Selective parameters: signed tensors that only steer what is written to a state and read from it.

In the recurrence h' = a h + B x, y = C h of a state space model the decays a are gates. B and C have both signs, yet
MambaLRP (arXiv:2406.07592) holds them constant as well. They are recognised by their place:

- a tensor that multiplies a carried state *reads* it;
- in an outer product that is added to a state, the factor along the dimension that reads sum over *writes*;
- a matrix weighed by decays *mixes* the tensor that it is contracted with (the parallel form, chunk by chunk).
"""

from __future__ import annotations

from torch.fx import Graph, Node

from lrp_fx.analysis.conditions.selective import along, behind, decayed, signed, sizes_read, states
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.gates import adds, carries_on
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import SELECTIVE


def find_selective(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.selective``: the slots of a product whose operands read, write or mix; and the facts behind it."""
    if not facts.recurrent:
        return
    facts.carried = _carried(graph, facts)
    for node in facts.specs:
        product = before_rules(facts, node)
        if SELECTIVE.holds("reads a state", product):
            facts.selective[node] = set(signed(facts, node)) - states(product)
            facts.read_sizes |= sizes_read(product)
        elif SELECTIVE.holds("mixes by decays", product):
            facts.selective[node] = decayed(product)
    facts.written = set(_written(facts))
    for node in facts.written:
        product = before_rules(facts, node)
        if SELECTIVE.holds("writes to a state", product):
            facts.selective[node] = along(product)


def _adds(facts: Facts, node: Node) -> bool:
    return node in facts.specs and adds(node, facts.specs[node])


def _written(facts: Facts) -> list[Node]:
    """Products of several signed tensors that are added to a state."""
    added = [behind(facts, n) for node in facts.carried if _adds(facts, node) for n in facts.operands[node].values()]
    return [
        n for n in dict.fromkeys(added) if n in facts.specs and n not in facts.carried and len(signed(facts, n)) > 1
    ]


def _carried(graph: Graph, facts: Facts) -> set[Node]:
    """Sums with a recurrent product, or that go into one that is added to the next, and nodes that carry them on."""
    weighed = set(facts.recurrent)
    steps = [n for n in facts.recurrent if any(_adds(facts, user) for user in n.users)]
    begun = {behind(facts, n) for step in steps for n in facts.operands[step].values() if n not in facts.positive}
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
        if begins or weighs or (any(n in carried for n in operands) and carries_on(node, spec, operands)):
            carried.add(node)
    return carried
