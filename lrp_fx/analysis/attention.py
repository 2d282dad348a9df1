"""Attention, fused or spelled out: where queries, keys, values, scores, weights and the mixed values are.

A softmax whose output, moved at most, is contracted with another carrying tensor mixes that tensor's rows. Where the
softmax's argument is, through masks and scalings, a contraction of two carrying tensors, these are queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import Slot

#: what of an attention can be named: "model.layers.3.self_attn@mixed"
PARTS = ("query", "key", "value", "scores", "weights", "mixed")


@dataclass(frozen=True)
class AttentionSite:
    """One attention.

    Attributes:
        path: path of the module that computes it.
        query: what is contracted with the keys, (..., S, D).
        key: (..., T, D), or (..., D, T) where it was transposed by the model.
        value: the rows that are mixed.
        scores: argument of the softmax, (..., S, T); None where the attention is fused.
        weights: the softmax, None where fused.
        mixed: weights times values, before heads are joined.
    """

    path: str
    query: Node
    key: Node
    value: Node
    scores: Node | None
    weights: Node | None
    mixed: Node

    def part(self, name: str) -> Node | None:
        """The node of one of :data:`PARTS`."""
        return getattr(self, name)


def find_attention(graph: Graph, facts: Facts) -> list[AttentionSite]:
    """Every attention of a captured graph, in graph order."""
    sites, contractions = [], _contractions_before(graph, facts)
    for node in graph.nodes:
        spec = facts.specs.get(node)
        if spec is None:
            continue
        if spec.kind == "attention":
            found = facts.operands[node]
            query, key, value = (found.get(Slot(name)) for name in ("query", "key", "value"))
            if query is not None and key is not None and value is not None:
                sites.append(AttentionSite(module_path(node), query, key, value, None, None, node))
        elif _is_softmax(facts, node) and (site := _spelled_out(facts, node, contractions)) is not None:
            sites.append(site)
    return sites


def _is_softmax(facts: Facts, node: Node) -> bool:
    spec = facts.specs[node]
    return spec.kind == "softmax" or (node in facts.manual_softmax and spec.kind == "quotient")


def _contracts(facts: Facts, node: Node) -> bool:
    spec = facts.specs.get(node)
    return spec is not None and spec.kind == "product" and not spec.elementwise and len(facts.operands[node]) == 2


def _spelled_out(facts: Facts, softmax: Node, contractions: dict[Node, Node]) -> AttentionSite | None:
    mixed, weights = _contraction_after(facts, softmax)
    scores = _argument(facts, softmax)
    product = contractions.get(scores)
    if mixed is None or product is None:
        return None
    value = next((n for n in facts.operands[mixed].values() if n is not weights), None)
    query, key = list(facts.operands[product].values())
    if value is None:
        return None
    return AttentionSite(module_path(mixed), query, key, value, scores, softmax, mixed)


def _contraction_after(facts: Facts, node: Node) -> tuple[Node | None, Node]:
    """The product that a softmax goes into, moved at most, and its operand there."""
    while True:
        users = [u for u in node.users if node in facts.operands.get(u, {}).values()]
        contractions = [u for u in users if _contracts(facts, u)]
        if contractions:
            return contractions[0], node
        moved = [u for u in users if facts.specs[u].kind == "movement" or _is_scaling(facts, u)]
        if len(moved) != 1:
            return None, node
        node = moved[0]


def _is_scaling(facts: Facts, node: Node) -> bool:
    spec = facts.specs[node]
    return spec.kind in ("linear", "product", "quotient") and spec.elementwise and len(facts.operands[node]) == 1


def _argument(facts: Facts, softmax: Node) -> Node:
    if softmax in facts.manual_softmax:
        exponential = next(iter(facts.operands[softmax].values()))
        return next(iter(facts.operands[exponential].values()))
    return next(iter(facts.operands[softmax].values()))


def _contractions_before(graph: Graph, facts: Facts) -> dict[Node, Node]:
    """The product behind every node, through casts, masks, scalings, caps and an added bias: the nearest at each."""
    found: dict[Node, Node] = {}
    for node in graph.nodes:
        spec = facts.specs.get(node)
        if spec is None:
            continue
        if _contracts(facts, node):
            found[node] = node
        elif spec.elementwise or spec.kind == "movement":
            behind = (found.get(operand) for operand in facts.operands[node].values())
            product = next((n for n in behind if n is not None), None)
            if product is not None:
                found[node] = product
    return found
