"""Conditions on layers with weights, and on batch norms that are folded into them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.graph.operands import Slot, is_float, slots
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.table import bind, op_name


def signals(candidate: Candidate) -> list[Slot]:
    """Slots of the factors that carry relevance."""
    return [slot for slot in slots(candidate.node, candidate.spec.args) if slot in candidate.carrying]


def weights(candidate: Candidate) -> list[Slot]:
    """Slots of the factors that are constants: floating tensors without relevance."""
    factors = slots(candidate.node, candidate.spec.args)
    return [slot for slot, n in factors.items() if slot not in candidate.carrying and is_float(n)]


@condition
def sums_products(candidate: Candidate) -> bool:
    """It sums products of entries (matmul, convolution, einsum)."""
    return candidate.spec.kind == "product" and not candidate.spec.elementwise


@condition
def has_one_signal(candidate: Candidate) -> bool:
    """Exactly one of its factors can carry relevance."""
    return len(signals(candidate)) == 1


@condition
def has_one_weight(candidate: Candidate) -> bool:
    """Exactly one of its factors is a constant tensor."""
    return len(weights(candidate)) == 1


@condition
def scales_channels(candidate: Candidate) -> bool:
    """It normalizes over the batch, by stored statistics: it scales and shifts every channel."""
    return _folds(candidate.facts, candidate.node)


@condition
def follows_a_layer(candidate: Candidate) -> bool:
    """Its operand is a layer with weights whose output channels are known, and that relevance reaches."""
    layer = candidate.facts.layers.get(candidate.first)
    return layer is not None and layer.channels is not None and candidate.first in candidate.live.values()


@condition
def is_the_only_reader(candidate: Candidate) -> bool:
    """Nothing else reads its operand."""
    return set(candidate.first.users) == {candidate.node}


@condition
def is_a_layer(candidate: Candidate) -> bool:
    """It is a layer with weights whose output channels are known."""
    layer = candidate.facts.layers.get(candidate.node)
    return layer is not None and layer.channels is not None


@condition
def reads_a_relu(candidate: Candidate) -> bool:
    """Its input is a ReLU that nothing else reads."""
    relu = layer_input(candidate)
    return op_name(relu) == "aten.relu" and set(relu.users) == {candidate.node}


@condition
def behind_a_normalization(candidate: Candidate) -> bool:
    """The ReLU reads a normalization over the batch, is its only reader, and no layer before it takes that in."""
    norm = normalization_before(candidate)
    only = norm is not None and set(norm.users) == {layer_input(candidate)}
    return only and _folds(candidate.facts, norm) and norm not in candidate.facts.folded


@condition
def normalizes_any_sign(candidate: Candidate) -> bool:
    """All channels of the normalized tensor may be negative: what a ReLU yields has been cut off already."""
    norm = normalization_before(candidate)
    return norm is None or not _holds_nonnegative(candidate.facts, candidate.facts.operands[norm].values())


def _holds_nonnegative(facts: Facts, nodes: Iterable[Node]) -> bool:
    """Whether a tensor, or a part that was moved into it (a concatenation), has no negative entry."""

    def moved(node: Node) -> Iterable[Node]:
        moves = node in facts.specs and facts.specs[node].kind in ("movement", "selection")
        return facts.operands[node].values() if moves else ()

    return any(node in facts.nonnegative for node in upstream(nodes, moved))


@condition
def has_one_group(candidate: Candidate) -> bool:
    """It has one group of channels."""
    return bind(candidate.node).get("groups", 1) == 1


def windows_touch(convolution: Node) -> bool:
    """Whether the windows of a convolution tile its input without overlap: a dense layer on patches."""
    bound = bind(convolution)
    if "stride" not in bound:  # conv_tbc has none: its windows overlap
        return False
    sizes = tuple(bound["weight"].meta["val"].shape[2:])

    def along_each(setting: Any) -> tuple[Any, ...]:
        values = tuple(setting) if isinstance(setting, (list, tuple)) else (setting,)
        return values * len(sizes) if len(values) == 1 else values

    apart = along_each(bound["stride"]) == sizes and max(sizes) > 1
    whole = bound["padding"] == "valid" or not any(along_each(bound["padding"]))
    dense = bound["groups"] == 1 and set(along_each(bound["dilation"])) == {1}
    return apart and whole and dense and not bound.get("transposed", "output_padding" in bound)


def layer_input(candidate: Candidate) -> Node:
    """The input of a layer."""
    return candidate.carrying[candidate.facts.layers[candidate.node].input]


def normalization_before(candidate: Candidate) -> Node | None:
    """The operand of the activation in front of a layer."""
    return next(iter(candidate.facts.operands.get(layer_input(candidate), {}).values()), None)


def _folds(facts: Facts, node: Node | None) -> bool:
    return node in facts.specs and bool(facts.specs[node].extra.get("folds"))
