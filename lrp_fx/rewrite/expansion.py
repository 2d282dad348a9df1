"""A product with factors that are a constant plus a signal, written as the sum that it is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch.fx import Node

from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.plan.make_plan import Term
from lrp_fx.rewrite.site import Site
from lrp_fx.rules.functions import scale_relevance

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """A factor of one term of the sum.

    Attributes:
        slot: its slot in the product.
        value: a node, or a number.
        weight: a number that multiplies it.
        signal: whether it carries relevance.
        weighs: whether it does so only where no other part of the term does.
    """

    slot: Slot
    value: Node | float
    weight: float = 1.0
    signal: bool = True
    weighs: bool = False


def distributed(site: Site) -> Node:
    """The product as it is, its relevance by the terms of the sum: each divided by the number of signals in it."""
    anchor = site.node.next
    with site.graph.inserting_before(anchor):
        choices = [_parts(site, term) for term in site.decision.terms]
        terms = [_term(site, parts) for parts in itertools.product(*choices)]
        carrier = terms[0]
        for term in terms[1:]:
            carrier = site.graph.call_function(aten.add.Tensor, (carrier, term))
        value = site.graph.call_function(aten.detach.default, (site.node,))
        new = site.graph.call_function(exact_value, (value, carrier))
    return site.take_over(anchor, new)


def _parts(site: Site, term: Term) -> list[_Part]:
    """A factor as a constant and a signal; as it is, where it is no sum, or weighs the others."""
    leaf, shift = term.leaf, term.leaf.shift
    if shift is None or term.weighs:
        return [_Part(leaf.slot, all_slots(site.copies[leaf.owner])[leaf.slot], weighs=term.weighs)]
    whole = site.copies[shift.sum]
    constant = site.copies[shift.constant] if isinstance(shift.constant, Node) else shift.constant
    if not site.spec.elementwise:  # a product of matrices reads every entry of c, as the sum spread it out
        spread = aten.expand_as.default if isinstance(constant, Node) else aten.full_like.default
        arguments = (constant, whole) if isinstance(constant, Node) else (whole, constant)
        constant = site.graph.call_function(spread, arguments)
    return [
        _Part(leaf.slot, constant, shift.constant_weight, signal=False),
        _Part(leaf.slot, all_slots(whole)[shift.signal], shift.weight),
    ]


def _term(site: Site, parts: tuple[_Part, ...]) -> Node:
    """One term: the product of its parts, whose signals share its relevance evenly."""
    graph, weight = site.graph, 1.0
    signals = [p for p in parts if p.signal and not p.weighs] or [p for p in parts if p.signal]
    values: list[tuple[Slot, Node]] = []
    for part in parts:
        weight *= part.weight
        if not isinstance(part.value, Node):
            weight *= part.value
        elif part not in signals:
            values.append((part.slot, graph.call_function(aten.detach.default, (part.value,))))
        elif len(signals) > 1:
            values.append((part.slot, graph.call_function(scale_relevance, (part.value, 1 / len(signals)))))
        else:
            values.append((part.slot, part.value))
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
