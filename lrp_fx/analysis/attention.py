"""The attentions of a graph, fused or written out: their queries, keys, values, scores, weights and mixed values.

In a written-out attention the output of a softmax, through movement and scaling, is contracted with a carrying tensor,
the values. The argument of the softmax, through masks and scaling, is a contraction of two carrying tensors: queries
and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from lrp_fx.analysis.conditions.attention import argument, contraction_after, contracts
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import ATTENTION, ATTENTION_WRITTEN_OUT
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import Slot

#: names of the tensors of an attention in latents ("model.layers.3.self_attn@mixed")
PARTS = ("query", "key", "value", "scores", "weights", "mixed")


@dataclass(frozen=True)
class AttentionSite:
    """One attention.

    Attributes:
        path: path of the module that computes it.
        query: (..., S, D).
        key: (..., T, D), or (..., D, T) if the model transposes it.
        value: (..., T, D).
        scores: argument of the softmax, (..., S, T); None if the attention is fused.
        weights: output of the softmax; None if the attention is fused.
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
    sites = []
    for node in graph.nodes:
        if node not in facts.specs:
            continue
        candidate = before_rules(facts, node)
        if ATTENTION.match(candidate):
            query, key, value = (candidate.carrying.get(Slot(name)) for name in ("query", "key", "value"))
            if query is not None and key is not None and value is not None:
                sites.append(AttentionSite(module_path(node), query, key, value, None, None, node))
        elif ATTENTION_WRITTEN_OUT.match(candidate):
            sites.append(_written_out(facts, node))
    return sites


def _written_out(facts: Facts, softmax: Node) -> AttentionSite:
    """The tensors of a written-out attention, from its softmax."""
    mixed, weights = contraction_after(facts, softmax)
    assert mixed is not None
    scores = argument(facts, softmax)
    query, key = facts.operands[facts.contraction[scores]].values()
    value = next(n for n in facts.operands[mixed].values() if n is not weights)
    return AttentionSite(module_path(mixed), query, key, value, scores, softmax, mixed)


def find_contractions(facts: Facts) -> None:
    """Fill ``facts.contraction``: the contraction behind a node, through casts, masks, scaling, caps and added bias."""
    for node, spec in facts.specs.items():
        if contracts(facts, node):
            facts.contraction[node] = node
        elif spec.elementwise or spec.kind == "movement":
            behind = (facts.contraction.get(operand) for operand in facts.operands[node].values())
            product = next((n for n in behind if n is not None), None)
            if product is not None:
                facts.contraction[node] = product
