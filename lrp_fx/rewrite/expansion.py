"""Products with factors of the form constant + signal, expanded into sums."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Shift
from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.plan.make_plan import Term
from lrp_fx.rewrite.site import Site
from lrp_fx.rules.functions import scale_relevance

aten = torch.ops.aten
Value = Node | float


@dataclass(frozen=True)
class _Factor:
    """A factor of one term of the expanded sum.

    Attributes:
        slot: its slot in the product.
        value: a node, or a number.
        weight: a number that multiplies it.
        signal: whether it carries relevance.
        weighs: whether it carries relevance only in terms without another signal.
    """

    slot: Slot
    value: Node | float
    weight: float = 1.0
    signal: bool = True
    weighs: bool = False


def distributed(site: Site) -> Node:
    """The product, with relevance by the terms of its expansion: the signals of a term share its relevance evenly."""
    anchor = site.node.next
    with site.graph.inserting_before(anchor):
        choices = [_addends(site, term) for term in site.decision.terms]
        terms = [_term(site, factors) for factors in itertools.product(*choices)]
        carrier = terms[0]
        for term in terms[1:]:
            carrier = site.graph.call_function(aten.add.Tensor, (carrier, term))
        value = site.graph.call_function(aten.detach.default, (site.node,))
        new = site.graph.call_function(exact_value, (value, carrier))
    return site.take_over(anchor, new)


def _addends(site: Site, term: Term) -> list[_Factor]:
    """The constant and the signal of a factor; the factor itself if it is no such sum, or only weighs the others."""
    leaf, shift = term.leaf, term.leaf.shift
    if shift is None or term.weighs:
        return [_Factor(leaf.slot, all_slots(site.copies[leaf.owner])[leaf.slot], weighs=term.weighs)]
    number = shift.number
    signals: list[tuple[Value, float]] = [
        (all_slots(site.copies[n])[slot], weight) for n, slot, weight in shift.signals
    ]
    tensors = [(site.copies[c], weight) for c, weight in shift.constants if isinstance(c, Node)]
    numbers = [(c, weight) for c, weight in shift.constants if not isinstance(c, Node)]
    spread = None if site.spec.elementwise and not shift.moved else site.copies[shift.sums[0]]
    if number is None:
        constant = _moved(site, _sum(site, [*tensors, *numbers], spread), shift)
    elif site.spec.elementwise:
        constant = (number, 1.0)
    else:
        whole = all_slots(site.copies[leaf.owner])[leaf.slot]
        constant = (site.graph.call_function(aten.full_like.default, (whole, number)), 1.0)
    return [
        _Factor(leaf.slot, *constant, signal=False),
        _Factor(leaf.slot, *_moved(site, _sum(site, signals, spread), shift)),
    ]


def _moved(site: Site, summed: tuple[Value, float], shift: Shift) -> tuple[Value, float]:
    """A sum, with its entries moved as those of the factor."""
    value, weight = summed
    for node, slot in shift.moved:
        assert isinstance(value, Node)  # it was spread
        moved = site.graph.node_copy(site.copies[node])
        replace(moved, slot, value)
        value = moved
    return value, weight


def _sum(site: Site, addends: Sequence[tuple[Value, float]], spread: Node | None) -> tuple[Value, float]:
    """(value, its factor) of a weighted sum, expanded to the shape of ``spread`` for a matrix product."""
    (result, weight), *others = addends
    if others:
        result, weight = _times(site, result, weight), 1.0
        for other, size in others:
            result = site.graph.call_function(aten.add.Tensor, (result, _times(site, other, size)))
    if spread is not None:
        spreading = aten.expand_as.default if isinstance(result, Node) else aten.full_like.default
        arguments = (result, spread) if isinstance(result, Node) else (spread, result)
        result = site.graph.call_function(spreading, arguments)
    return result, weight


def _times(site: Site, value: Value, weight: float) -> Value:
    if not isinstance(value, Node):
        return weight * value
    return value if weight == 1 else site.graph.call_function(aten.mul.Tensor, (value, weight))


def _term(site: Site, factors: tuple[_Factor, ...]) -> Node:
    """One term: the product of its factors; its signals share its relevance evenly."""
    graph, weight = site.graph, 1.0
    signals = [f for f in factors if f.signal and not f.weighs] or [f for f in factors if f.signal]
    values: list[tuple[Slot, Node]] = []
    for factor in factors:
        weight *= factor.weight
        if not isinstance(factor.value, Node):
            weight *= factor.value
        elif factor not in signals:
            values.append((factor.slot, graph.call_function(aten.detach.default, (factor.value,))))
        elif len(signals) > 1:
            values.append((factor.slot, graph.call_function(scale_relevance, (factor.value, 1 / len(signals)))))
        else:
            values.append((factor.slot, factor.value))
    if not values:
        return graph.call_function(aten.full_like.default, (site.node, weight))
    (_, result), *others = values
    if site.spec.elementwise:
        for _, value in others:
            result = graph.call_function(aten.mul.Tensor, (result, value))
    else:
        result = graph.node_copy(site.node)
        for slot, value in values:
            replace(result, slot, value)
    return result if weight == 1 else graph.call_function(aten.mul.Tensor, (result, weight))
