"""Conditions on products with a factor of the form constant + signal: x (c + s), as in modulation.

They apply to the product at the end of a chain: x (1 + a) (1 + b) is one product of three factors.
"""

from __future__ import annotations

import operator
from itertools import combinations

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Expansion, Facts, Leaf, Shift
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.analysis.statistics import is_statistic_of
from lrp_fx.graph.operands import Slot
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.table import bind, coefficients

_MOST = 4  #: largest number of factors of an expanded product: n shifted factors give 2^n terms


@condition
def multiplies_two_signals(candidate: Candidate) -> bool:
    """It multiplies two tensors that carry relevance."""
    return _multiplies(candidate.facts, candidate.node)


@condition
def goes_into_no_product(candidate: Candidate) -> bool:
    """Products that read it are expanded themselves, with it as one of their factors, or divide it by its norm."""
    facts, node = candidate.facts, candidate.node
    longer = [
        u for u in node.users if candidate.spec.elementwise and _is_long(facts, u) and not _scales(facts, u, node)
    ]
    return all(u in facts.shifted and node not in facts.shifted[u].inside for u in longer)


@condition
def has_a_shifted_factor(candidate: Candidate) -> bool:
    """One of its factors is a constant plus a signal, also scaled or moved; a parameter is no such constant."""
    return any(leaf.shift is not None for leaf in leaves(candidate))


@condition
def has_independent_factors(candidate: Candidate) -> bool:
    """Its factors are functions of different signals: x (1 + tanh x) is one nonlinearity."""
    facts = candidate.facts
    factors = [facts.operands[leaf.owner][leaf.slot] for leaf in leaves(candidate)]
    return 1 < len(factors) <= _MOST and _independent(facts, factors)


def expand(candidate: Candidate) -> Expansion:
    """The expansion of the product into a sum."""
    chain = leaves(candidate)
    return Expansion(tuple(chain), frozenset(n for leaf in chain for n, _ in leaf.way[1:]))


def leaves(candidate: Candidate) -> list[Leaf]:
    """The factors of a chain of products.

    If all are shifted, their expansion has a term without a signal. This term must be a number; if it is not, the first
    factor counts as a plain signal.
    """
    facts, node = candidate.facts, candidate.node
    factors = _leaves(facts, node, ()) if candidate.spec.elementwise else _direct_leaves(facts, node, ())
    shifts = [leaf.shift for leaf in factors if leaf.shift is not None]
    numbers = candidate.spec.elementwise and all(shift.number is not None for shift in shifts)
    if len(shifts) == len(factors) and not numbers:
        factors[0] = Leaf(factors[0].way, None)
    return factors


def _leaves(facts: Facts, node: Node, way: tuple[tuple[Node, Slot], ...]) -> list[Leaf]:
    factors: list[Leaf] = []
    for leaf in _direct_leaves(facts, node, way):
        factor = facts.operands[leaf.owner][leaf.slot]
        inner = _leaves(facts, factor, leaf.way) if _is_inside(facts, factor) else []
        factors += inner or [leaf]
    return factors


def _direct_leaves(facts: Facts, node: Node, way: tuple[tuple[Node, Slot], ...]) -> list[Leaf]:
    operands = facts.operands[node].items()
    return [Leaf((*way, (node, slot)), _shift(facts, factor)) for slot, factor in operands]


def _is_inside(facts: Facts, node: Node) -> bool:
    """Whether a factor is itself a product of independent factors, with no other reader."""
    spec = facts.specs.get(node)
    plain = spec is not None and spec.elementwise and len(node.users) == 1 and _multiplies(facts, node)
    return plain and node not in facts.manual_softmax and _independent(facts, list(facts.operands[node].values()))


def _multiplies(facts: Facts, node: Node) -> bool:
    spec, operands = facts.specs.get(node), facts.operands.get(node, {})
    if spec is None or spec.kind != "product" or spec.terms or len(operands) != 2:
        return False
    return len(set(operands.values())) == 2 and all(slot.name in spec.args for slot in operands)


def _is_long(facts: Facts, node: Node) -> bool:
    """Whether a node is an elementwise product or quotient of several signals."""
    spec = facts.specs.get(node)
    return (
        spec is not None and spec.kind in ("product", "quotient") and spec.elementwise and len(facts.operands[node]) > 1
    )


def _scales(facts: Facts, node: Node, numerator: Node) -> bool:
    """Whether a node divides a product by a statistic of its factors, which is held constant."""
    spec, operands = facts.specs[node], facts.operands[node]
    divisor = operands.get(Slot(spec.args[1])) if spec.kind == "quotient" else None
    return divisor is not None and divisor is not numerator and is_statistic_of(facts, divisor, numerator)


def _independent(facts: Facts, factors: list[Node]) -> bool:
    if len({facts.origin.get(n, n) for n in factors}) < len(factors):
        return False
    pairs = list(combinations(factors, 2))
    return not any(is_statistic_of(facts, a, b) or is_statistic_of(facts, b, a) for a, b in pairs)


def _shift(facts: Facts, factor: Node) -> Shift | None:
    """``factor`` as a sum of constants and signals, also times a number, and moved; None if it is no such sum."""
    first, size, moved = _unmoved(facts, factor)
    sums = _sums(facts, first)
    weights, signals, constants, inside = {first: size}, [], [], set(sums)
    for node in sums:
        for slot, weight in _signals(facts, node).items():
            inner, size = _unscaled(facts, facts.operands[node][slot])
            if inner in inside:
                weights[inner] = weights.get(inner, 0.0) + weights[node] * weight * size
            else:
                signals.append((node, slot, weights[node] * weight))
        constants += [(c, weights[node] * weight) for c, weight in _constants(facts, node)]
    shift = Shift(tuple(sums), tuple(signals), tuple(constants), moved)
    return shift if constants and shift.number != 0 else None


def _sums(facts: Facts, factor: Node) -> list[Node]:
    """The nested sums of a factor, outermost first; a sum that adds a parameter counts as one signal."""
    stack, sums = [factor], set()
    while stack:
        node, _ = _unscaled(facts, stack.pop())
        spec = facts.specs.get(node)
        if node in sums or spec is None or spec.kind != "linear" or not spec.elementwise:
            continue
        if len(coefficients(node, spec)) == 2 and all(_is_plain(facts, c) for c, _ in _constants(facts, node)):
            sums.add(node)
            stack += facts.operands[node].values()
    return sorted(sums, reverse=True)


def _signals(facts: Facts, node: Node) -> dict[Slot, float]:
    weights = coefficients(node, facts.specs[node])
    return {slot: weights[slot.name] for slot in facts.operands[node]}


def _constants(facts: Facts, node: Node) -> list[tuple[Node | float, float]]:
    weights, bound = coefficients(node, facts.specs[node]), bind(node)
    constants = [(bound[name], weight) for name, weight in weights.items() if Slot(name) not in facts.operands[node]]
    return [(c if isinstance(c, Node) else float(c), weight) for c, weight in constants]


def _unmoved(facts: Facts, factor: Node) -> tuple[Node, float, tuple[tuple[Node, Slot], ...]]:
    """The sum behind a chain of movements and scalings by numbers: (sum, product of the numbers, movements)."""
    moved: list[tuple[Node, Slot]] = []
    node, size = _unscaled(facts, factor)
    while _only_moves(facts, node):
        ((slot, operand),) = facts.operands[node].items()
        moved.append((node, slot))
        node, further = _unscaled(facts, operand)
        size *= further
    return node, size, tuple(reversed(moved))


def _only_moves(facts: Facts, node: Node) -> bool:
    """Whether every entry of ``node`` is one of its only operand."""
    spec = facts.specs.get(node)
    if spec is None or spec.kind != "movement" or len(spec.args) != 1 or spec.extra.keys() & {"literals", "fills"}:
        return False
    return isinstance(bind(node).get(spec.args[0]), Node)


def _unscaled(facts: Facts, node: Node) -> tuple[Node, float]:
    """The operand of a chain of scalings by numbers, and their product."""
    size = 1.0
    while (scaled := _times_number(facts, node)) is not None:
        size, node = size * scaled[0], scaled[1]
    return node, size


def _times_number(facts: Facts, node: Node) -> tuple[float, Node] | None:
    """(number, signal) of a signal times a number."""
    spec, operands = facts.specs.get(node), list(facts.operands.get(node, {}).values())
    if spec is None or spec.kind != "product" or not spec.elementwise or len(operands) != 1:
        return None
    numbers = [v for name in spec.args if isinstance(v := bind(node).get(name), (int, float))]
    return (float(numbers[0]), operands[0]) if len(numbers) == 1 else None


def _is_plain(facts: Facts, constant: object) -> bool:
    """Whether a constant is a number other than 0, or a tensor without parameters: a bias belongs to its layer.

    Ones with the shape of a signal are no function of the parameters behind it.
    """
    if isinstance(constant, (int, float)):
        return constant != 0
    if not isinstance(constant, Node):
        return False
    for node in upstream([constant], lambda n: () if _has_a_shape(facts, n) else n.all_input_nodes):
        if node.op == "get_attr":
            module = node.graph.owning_module
            value = operator.attrgetter(str(node.target))(module) if module is not None else None
            if isinstance(value, torch.nn.Parameter) or value is None:
                return False
    return True


def _has_a_shape(facts: Facts, node: Node) -> bool:
    """Whether a node reads shapes, indices and comparisons alone."""
    spec = facts.ops.get(node)
    return spec is not None and spec.kind == "constant"
