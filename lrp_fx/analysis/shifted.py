"""Products with a factor that is a constant plus a signal: x (c + s), as modulation is written, and 1 - z in a cell.

``x * (1 + s)`` and ``x + x * s`` are one function, so relevance must not depend on which of them the author wrote. The
constant is no factor that could be credited: c x is linear in x, and x s is a product of two. So a rule for products
divides only the part of the output that is x s.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Shifted
from lrp_fx.analysis.products import is_product
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import bind, coefficients


def find_shifted(facts: Facts) -> None:
    """Fill ``facts.shifted``: products of two signals, one of which is a constant plus a signal."""
    for node, spec in facts.specs.items():
        factors = {slot: n for slot, n in facts.operands[node].items() if slot.name in spec.args}
        if spec.kind != "product" or spec.terms or len(factors) != 2 or len(set(factors.values())) != 2:
            continue
        if spec.elementwise and any(_multiplies(facts, user) for user in node.users):
            continue  # a factor of a longer product, whose other factors may be statistics of this one's
        for slot, factor in factors.items():
            (other,) = (n for n in factors.values() if n is not factor)
            shifted = _shifted(facts, slot, factor)
            if shifted is not None and _independent(facts, factor, other):
                facts.shifted[node] = shifted
                break


def _multiplies(facts: Facts, node: Node) -> bool:
    """Whether a node is a product of several signals."""
    return is_product(facts, node) and len(facts.operands[node]) > 1


def _shifted(facts: Facts, slot: Slot, factor: Node) -> Shifted | None:
    """``factor`` as a constant plus a signal, if it is one, or such a sum times a number."""
    size, node = 1.0, factor
    while (scaled := _times_number(facts, node)) is not None:
        size, node = size * scaled[0], scaled[1]
    spec = facts.specs.get(node)
    if spec is None or spec.kind != "linear" or not spec.elementwise or len(facts.operands[node]) != 1:
        return None
    weights, bound = coefficients(node, spec), bind(node)
    (signal,) = facts.operands[node]
    constants = [name for name in spec.args if name != signal.name and bound.get(name) is not None]
    if len(weights) != 2 or len(constants) != 1 or not _is_given(bound[constants[0]]):
        return None
    name = constants[0]
    return Shifted(slot, node, signal, size * weights[signal.name], bound[name], size * weights[name])


def _times_number(facts: Facts, node: Node) -> tuple[float, Node] | None:
    """(number, signal) of a signal times a number."""
    spec, operands = facts.specs.get(node), list(facts.operands.get(node, {}).values())
    if spec is None or spec.kind != "product" or not spec.elementwise or len(operands) != 1:
        return None
    numbers = [v for name in spec.args if isinstance(v := bind(node).get(name), (int, float))]
    return (float(numbers[0]), operands[0]) if len(numbers) == 1 else None


def _is_given(constant: object) -> bool:
    """Whether a constant is a number, or a tensor that no parameter is in: a bias is what a layer adds."""
    if isinstance(constant, (int, float)):
        return constant != 0
    stack, seen = [constant], set()
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if node.op == "get_attr":
            module = node.graph.owning_module
            value = operator.attrgetter(str(node.target))(module) if module is not None else None
            if isinstance(value, torch.nn.Parameter) or value is None:
                return False
        stack += node.all_input_nodes
    return isinstance(constant, Node)


def _independent(facts: Facts, factor: Node, other: Node) -> bool:
    """Whether two factors are functions of different signals: x (1 + tanh x) is one nonlinearity, x (1 + 1/s(x)) a
    normalization."""
    if facts.origin.get(factor) is facts.origin.get(other):
        return False
    return not (facts.is_statistic_of(factor, other) or facts.is_statistic_of(other, factor))
