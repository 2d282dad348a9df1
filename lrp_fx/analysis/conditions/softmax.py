"""Conditions on a written-out softmax, in any spelling of its total and its logarithm.

They apply to its last node: the division, the logarithm, the exponential of a logarithm. A total of exponentials is
computed by linear operators that sum entries: ``sum``, ``index_add`` and ``scatter_reduce`` over segments, a product
with ones. A running softmax sums chunk by chunk and rescales each part by an exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Mixing
from lrp_fx.analysis.matching import Candidate, before_rules, condition
from lrp_fx.analysis.statistics import is_statistic_of
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import bind, coefficients, op_name

_LOGARITHMS, _LOG_SUM_EXP = ("aten.log",), ("aten.logsumexp", "aten.logaddexp")
_LOG_SOFTMAX = ("aten.log_softmax", "aten._log_softmax")


@dataclass
class Combination:
    """A node computed from exponentials alone: by movement, sums, and products with constants and each other.

    Attributes:
        exponentials: the exponentials.
        inside: all nodes from the exponentials to this node.
        sums: whether entries are summed.
        adds: whether tensors are added.
    """

    exponentials: set[Node] = field(default_factory=set)
    inside: set[Node] = field(default_factory=set)
    sums: bool = False
    adds: bool = False

    def is_total(self, facts: Facts) -> bool:
        """Whether it adds up entries, or exponentials of several tensors."""
        return self.sums or (self.adds and len({facts.origin[n] for n in self.exponentials}) > 1)


def combination_of_exponentials(facts: Facts, node: Node) -> Combination | None:
    """``node`` as a combination of exponentials; None if it depends on other signals, too."""
    combination, stack = Combination(), [node]
    while stack:
        current = stack.pop()
        spec = facts.specs.get(current)
        if current in combination.inside:
            continue
        if spec is None:
            return None
        combination.inside.add(current)
        if spec.extra.get("decay"):
            combination.exponentials.add(current)
            continue
        if spec.kind not in ("movement", "linear", "product") or spec.terms:
            return None
        operands = list(facts.operands[current].values())
        if spec.kind == "product" and len(operands) > 1 and not spec.elementwise:
            return None
        combination.sums |= not (spec.elementwise or spec.kind == "movement")
        combination.adds |= spec.kind == "linear" and len(operands) > 1
        stack += operands
    return combination if combination.exponentials else None


def is_exponential(facts: Facts, node: Node) -> bool:
    """Whether a node is an exponential that relevance can reach."""
    return node in facts.specs and bool(facts.specs[node].extra.get("decay"))


def unmoved(facts: Facts, node: Node, scaled: bool = False) -> Node:
    """The tensor behind movement, casts and added constants, with ``scaled`` also behind scaling by constants."""
    kinds = ("linear", "product") if scaled else ("linear",)
    while (spec := facts.specs.get(node)) is not None and len(facts.operands[node]) == 1:
        if spec.kind != "movement" and not (spec.kind in kinds and spec.elementwise):
            break
        (node,) = facts.operands[node].values()
    return node


def fraction(candidate: Candidate) -> tuple[Node, Node, Node | None] | None:
    """(numerator, denominator, the reciprocal if it is written as a product) of a division of two signals."""
    facts, spec, operands = candidate.facts, candidate.spec, list(candidate.carrying.values())
    if not spec.elementwise or len(operands) != 2 or operands[0] is operands[1]:
        return None
    if spec.kind == "quotient":
        bound = bind(candidate.node)
        return bound["self"], bound["other"], None
    if spec.kind == "product":
        for numerator, other in (operands, operands[::-1]):
            inverse = unmoved(facts, other, scaled=True)
            if (divisor := _divisor(facts, inverse)) is not None:
                return numerator, divisor, inverse
    return None


def _divisor(facts: Facts, node: Node) -> Node | None:
    """The denominator of a reciprocal."""
    spec, operands = facts.specs.get(node), facts.operands.get(node, {})
    if spec is None or not spec.elementwise or len(operands) != 1:
        return None
    inverse = spec.kind == "quotient" and Slot(spec.args[1]) in operands
    power = bind(node)[spec.degree] if isinstance(spec.degree, str) else spec.degree
    return next(iter(operands.values())) if inverse or power == -1 else None


@condition
def divides_tensors(candidate: Candidate) -> bool:
    """It divides one tensor by another, entry by entry, or multiplies it by a reciprocal."""
    return fraction(candidate) is not None


@condition
def has_an_exponential(candidate: Candidate) -> bool:
    """Its numerator is an exponential, also moved and scaled."""
    numerator, _, _ = fraction(candidate)  # type: ignore[misc]
    combination = combination_of_exponentials(candidate.facts, numerator)
    return combination is not None and not (combination.sums or combination.adds)


@condition
def divides_by_its_sum(candidate: Candidate) -> bool:
    """Its denominator is a total of that exponential: over a dimension, over segments, or with other exponentials."""
    return _total(candidate.facts, candidate.node) is not None


@condition
def has_a_mixture(candidate: Candidate) -> bool:
    """Its numerator is a sum of contractions of exponentials with values; exponentials may rescale its parts."""
    return find_mixture(candidate) is not None


@condition
def divides_by_their_total(candidate: Candidate) -> bool:
    """Its denominator is a total of the same exponentials."""
    _, denominator, _ = fraction(candidate)  # type: ignore[misc]
    total, mixture = combination_of_exponentials(candidate.facts, denominator), find_mixture(candidate)
    return total is not None and total.sums and total.exponentials == mixture.exponentials  # type: ignore[union-attr]


@condition
def is_the_only_reader(candidate: Candidate) -> bool:
    """Nothing else reads its exponentials."""
    return _only_inside(candidate, is_exponential)


@condition
def is_the_only_reader_of_the_sum(candidate: Candidate) -> bool:
    """Nothing else reads the nodes computed from them, such as its denominator."""
    return _only_inside(candidate, lambda facts, node: True)


def _only_inside(candidate: Candidate, selects: Callable[[Facts, Node], bool]) -> bool:
    """Whether all readers of the selected nodes of the softmax belong to the softmax, or divide by the same total."""
    facts, inside = candidate.facts, {*region(candidate), candidate.node}
    selected = [node for node in inside - {candidate.node} if selects(facts, node)]
    total = _total(facts, candidate.node)

    def belongs(reader: Node) -> bool:
        if reader in inside or (total is not None and _total(facts, reader) == total):
            return True
        moved = total is not None and reader in facts.specs and facts.specs[reader].kind == "movement"
        return moved and all(belongs(further) for further in _readers(facts, reader))

    return all(belongs(reader) for node in selected for reader in _readers(facts, node))


def _total(facts: Facts, node: Node) -> frozenset[Node] | None:
    """The exponentials in the denominator of a part of a softmax; None if the node is no such division."""
    division = fraction(before_rules(facts, node)) if node in facts.specs else None
    if division is None:
        return None
    part, total = (combination_of_exponentials(facts, n) for n in division[:2])
    if part is None or total is None or part.sums or part.adds or not total.is_total(facts):
        return None
    return frozenset(total.exponentials) if part.exponentials <= total.exponentials else None


def _readers(facts: Facts, node: Node) -> list[Node]:
    """Users that relevance comes from, unlike those that only read a size."""
    return [user for user in node.users if user.op == "output" or node in facts.operands.get(user, {}).values()]


@condition
def is_a_logarithm(candidate: Candidate) -> bool:
    """It is a logarithm."""
    return op_name(candidate.node) in _LOGARITHMS


@condition
def reads_a_total(candidate: Candidate) -> bool:
    """Its operand is a total of exponentials."""
    combination = combination_of_exponentials(candidate.facts, candidate.first)
    return combination is not None and combination.is_total(candidate.facts)


@condition
def reads_a_softmax(candidate: Candidate) -> bool:
    """Its operand is a softmax, also moved."""
    return _is_softmax(candidate.facts, unmoved(candidate.facts, candidate.first, scaled=True))


@condition
def adds(candidate: Candidate) -> bool:
    """It adds two tensors."""
    return _weights(candidate) == [1, 1]


@condition
def adds_the_subtrahend(candidate: Candidate) -> bool:
    """One is the logarithm of a total of exponentials; the other was subtracted from their argument."""
    first, second = candidate.carrying.values()
    return any(_was_subtracted(candidate.facts, *pair) for pair in ((first, second), (second, first)))


@condition
def subtracts(candidate: Candidate) -> bool:
    """It subtracts one tensor from another."""
    return _weights(candidate) == [-1, 1]


@condition
def less_its_log_sum_exp(candidate: Candidate) -> bool:
    """It subtracts the logarithm of a total of exponentials of the other."""
    facts, (logits, subtrahend) = candidate.facts, _difference(candidate)
    normalised = _normalised(facts, unmoved(facts, subtrahend))
    same = any(_moved_from(facts, n) is _moved_from(facts, logits) for n in normalised)
    return same or (bool(normalised) and is_statistic_of(facts, subtrahend, logits))


@condition
def is_an_exponential(candidate: Candidate) -> bool:
    """It is an exponential."""
    return is_exponential(candidate.facts, candidate.node)


@condition
def reads_a_log_softmax(candidate: Candidate) -> bool:
    """Its operand is the logarithm of a softmax, also moved."""
    node = unmoved(candidate.facts, candidate.first)
    return op_name(node) in _LOG_SOFTMAX or node in candidate.facts.log_softmax


@condition
def is_part_of_a_softmax(candidate: Candidate) -> bool:
    """It is the exponential, the sum or the division of a written-out softmax."""
    return candidate.node in candidate.facts.manual_softmax


def _is_softmax(facts: Facts, node: Node) -> bool:
    spec = facts.specs.get(node)
    fused = spec is not None and spec.kind == "softmax" and bool(spec.extra.get("positive"))
    return fused or node in facts.softmaxes


def _normalised(facts: Facts, node: Node) -> list[Node]:
    """The arguments of the exponentials in a log-sum-exp, with and without the subtraction in them."""
    if op_name(node) in _LOG_SUM_EXP:
        return list(facts.operands[node].values())
    arguments = [n for e in facts.log_sum_exp.get(node, ()) for n in facts.operands[e].values()]
    return arguments + [n for argument in arguments for n in facts.operands.get(argument, {}).values()]


def _weights(candidate: Candidate) -> list[float]:
    """Coefficients of a sum of two signals, in ascending order; empty for other nodes."""
    if candidate.spec.kind != "linear" or not candidate.spec.elementwise or len(candidate.carrying) != 2:
        return []
    return sorted(coefficients(candidate.node, candidate.spec).values())


def _was_subtracted(facts: Facts, logarithm: Node, other: Node) -> bool:
    exponentials = facts.log_sum_exp.get(unmoved(facts, logarithm))
    return bool(exponentials) and all(_moved_from(facts, other) in subtrahends(facts, e) for e in exponentials or ())


def subtrahends(facts: Facts, exponential: Node) -> set[Node]:
    """The tensors that are subtracted in the argument of an exponential, before they were moved."""
    (argument,) = facts.operands[exponential].values()
    spec, bound = facts.specs.get(argument), bind(argument)
    if spec is None or spec.kind != "linear" or not spec.elementwise:
        return set()
    subtracted = (bound[name] for name, weight in coefficients(argument, spec).items() if weight == -1)
    return {_moved_from(facts, n) for n in subtracted if isinstance(n, Node)}


def _moved_from(facts: Facts, node: Node) -> Node:
    """The tensor behind movement and detaches."""
    while (spec := facts.ops.get(node)) is not None and spec.kind == "movement" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _difference(candidate: Candidate) -> tuple[Node, Node]:
    """(minuend, subtrahend)."""
    weights, bound = coefficients(candidate.node, candidate.spec), bind(candidate.node)
    first, second = sorted(weights, key=lambda name: -weights[name])
    return bound[first], bound[second]


def find_mixture(candidate: Candidate) -> Mixing | None:
    """The numerator of a division as a sum of contractions of exponentials with values; None if it is no such sum."""
    division, facts = fraction(candidate), candidate.facts
    if division is None:
        return None
    mixing, stack = Mixing(), [division[0]]
    while stack:
        node = stack.pop()
        spec, operands = facts.specs.get(node), facts.operands.get(node, {})
        if spec is None or spec.terms or node in mixing.inside:
            return None
        mixing.inside.add(node)
        weights = {
            slot: combination
            for slot, n in operands.items()
            if (combination := combination_of_exponentials(facts, n)) is not None
        }
        for combination in weights.values():
            mixing.exponentials |= combination.exponentials
            mixing.weights |= combination.inside
        values = [n for slot, n in operands.items() if slot not in weights]
        if spec.kind == "product" and len(operands) == 2 and len(weights) == 1:
            mixing.slots[node] = next(iter(weights))
            if spec.elementwise:
                stack += values
            else:
                mixing.contractions.append(node)
        elif spec.kind == "movement" or (spec.kind == "linear" and spec.elementwise):
            stack += values
        else:
            return None
    return mixing if mixing.contractions else None


def region(candidate: Candidate) -> set[Node]:
    """The nodes of a written-out softmax, without the last one."""
    return set(_region(candidate))


def _region(candidate: Candidate) -> Iterator[Node]:
    facts, division = candidate.facts, fraction(candidate)
    if division is None:
        combination = combination_of_exponentials(facts, candidate.first)
        yield from () if combination is None else combination.inside
        return
    numerator, denominator, inverse = division
    mixing = find_mixture(candidate)
    if mixing is not None:
        yield from mixing.inside | mixing.weights
    for node in (numerator, denominator):
        combination = combination_of_exponentials(facts, node)
        yield from () if combination is None else combination.inside
    if inverse is not None:
        other = next(n for n in candidate.carrying.values() if n is not numerator)
        while other is not inverse:
            yield other
            (other,) = facts.operands[other].values()
        yield inverse
