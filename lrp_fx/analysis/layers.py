"""Layers with weights, their roles, and the batch norms that are folded into them.

A batch norm behind a layer scales and shifts its output. In front of the layer, with a ReLU in between, it scales and
shifts a threshold: relu(a z + b) = a max(z, -b/a) + b for a > 0, and a min(z, -b/a) + b for a < 0 (Pahde et al. 2022,
arXiv:2211.17174). Rules that depend on the signs of weights and inputs treat both as one layer. What the threshold
yields at z = 0 is a constant here, like b: it would give z near 0 a relevance that z, a sum of terms that cancel, hands
on many times over.
"""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.conditions.layers import normalization_before, signals, weights, windows_touch
from lrp_fx.analysis.facts import Facts, Layer
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import FOLDED, LAYER, THRESHOLD
from lrp_fx.graph.operands import slots


def find_layers(facts: Facts) -> None:
    """Fill ``facts.layers``, ``facts.folded`` and ``facts.thresholds``."""
    entries = _entries(facts)
    for node, spec in facts.specs.items():
        candidate = before_rules(facts, node)
        if LAYER.match(candidate):
            (signal,), (weight,) = signals(candidate), weights(candidate)
            roles = _roles(facts, node, candidate.carrying[signal], spec.extra.get("layer", "dense"), entries)
            biases = tuple(slots(node, spec.terms))
            mixed = any(slot in candidate.carrying for slot in biases)  # a batch norm behind the layer would scale them
            facts.layers[node] = Layer(roles, signal, weight, biases, None if mixed else spec.extra.get("channels"))
        elif FOLDED.match(candidate):
            facts.folded[node] = candidate.first
    for layer in facts.layers:
        candidate = before_rules(facts, layer)
        if THRESHOLD.match(candidate):
            norm = normalization_before(candidate)
            assert norm is not None
            facts.thresholds[layer] = norm


def _roles(facts: Facts, node: Node, operand: Node, kind: str, entries: set[Node]) -> tuple[str, ...]:
    roles = [kind, "linear"]
    if kind == "dense" and (_meets_attention(facts, node) or _comes_from_attention(facts, operand)):
        roles.insert(0, "attention-projection")
    if operand in entries:
        roles.insert(0, "first-layer")
        if kind == "convolution":
            roles.insert(0, "patch-embedding" if windows_touch(node) else "first-convolution")
    return tuple(roles)


def _entries(facts: Facts) -> set[Node]:
    """Floating-point inputs, also moved, shifted and scaled."""
    entries = {source.node for source in facts.sources if source.indices is None}
    for node, spec in facts.specs.items():
        operands = list(facts.operands[node].values())
        affine = spec.elementwise and spec.kind in ("linear", "product", "quotient")
        if len(operands) == 1 and operands[0] in entries and (affine or spec.kind == "movement"):
            entries.add(node)
    return entries


def _is_attention(facts: Facts, node: Node) -> bool:
    """Whether ``node`` contracts two carrying tensors."""
    spec = facts.specs.get(node)
    contracts = spec is not None and spec.kind == "product" and not spec.elementwise and len(facts.operands[node]) > 1
    return spec is not None and (spec.kind == "attention" or contracts)


def _meets_attention(facts: Facts, node: Node) -> bool:
    """Whether ``node`` computes a query, key or value, through movement, normalization and rotation."""
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if _is_attention(facts, user):
                return True
            spec = facts.specs.get(user)
            if spec is None or user in seen:
                continue
            rotated = spec.elementwise and spec.kind in ("linear", "product") and _one_origin(facts, user, seen)
            if spec.kind in ("movement", "normalization") or rotated:  # a sum is met again from its other term
                seen.add(user)
                stack.append(user)
    return False


def _one_origin(facts: Facts, node: Node, seen: set[Node]) -> bool:
    """Whether all carrying operands come from one tensor: those of a rotation do, those of a residual sum do not."""
    return all(n in seen for n in facts.operands[node].values())


def _comes_from_attention(facts: Facts, node: Node) -> bool:
    while node in facts.specs and facts.specs[node].kind == "movement" and len(facts.operands[node]) == 1:
        node = next(iter(facts.operands[node].values()))
    return _is_attention(facts, node)
