"""Products in canonical form: a list of factors, whatever the association, spelling and casts.

``a * (b * c)``, ``x.pow(2) * z``, ``x * rsqrt(mean(x * x)) * w``, ``x * (sigmoid(x) * z)`` and ``a / b`` are trees of
elementwise products, quotients, casts and constant scalings. Flattened, each has factors; factors that are functions of
the same tensor form one group (``x * sigmoid(x)`` is one nonlinearity); a factor that is a statistic of another one
makes the product a normalization.

In a product of a tensor with itself, one node is in two slots. So a factor may be reached on many paths; it is listed
once, with a count (2^30 for thirty squarings). The products of a graph are flattened on one walk: the factors of an
inner product move to the product that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.statistics import is_statistic_of
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, bind

Live = Mapping[Node, Mapping[Slot, Node]]


@dataclass
class Group:
    """Factors that are functions of one tensor.

    Attributes:
        factors: factor -> number of occurrences (``x.pow(3)`` is one factor).
        nonlinear: whether one of them is the output of a nonlinearity.
        positive: whether all of them only weigh a signal.
        selective: whether all of them are selective parameters.
    """

    factors: dict[Node, int] = field(default_factory=dict)
    nonlinear: bool = False
    positive: bool = True
    selective: bool = True


@dataclass
class Product:
    """A flattened product.

    Attributes:
        groups: tensor -> the factors that are functions of it.
        statistics: factors that are statistics of other factors -> number of occurrences.
        reduced: factors that depend on some tensor only through a reduction: candidates for statistics.
        tally: number of groups that are nonlinear, positive and selective.
        size: number of factors, each counted once.
        inverse: for a single factor, whether it divides.
        recurrent: whether one of the products in it is recurrent.
    """

    groups: dict[Node, Group] = field(default_factory=dict)
    statistics: dict[Node, int] = field(default_factory=dict)
    reduced: set[Node] = field(default_factory=set)
    tally: list[int] = field(default_factory=lambda: [0, 0, 0])
    size: int = 0
    inverse: bool = False
    recurrent: bool = False

    def factors(self) -> Iterator[tuple[Node, int]]:
        """Every factor, with its number of occurrences."""
        for group in self.groups.values():
            yield from group.factors.items()
        yield from self.statistics.items()

    def note(self, group: Group, step: int) -> None:
        """Add ``step`` to the tally of a group: 1, or -1 before the group changes."""
        for index, flag in enumerate((group.nonlinear, group.positive, group.selective)):
            self.tally[index] += step * flag

    def multiplied(self, times: int) -> None:
        """Multiply the number of occurrences of every factor."""
        for counts in (self.statistics, *(group.factors for group in self.groups.values())):
            counts.update({node: times * count for node, count in counts.items()})

    def select(self) -> None:
        """Mark all groups as selective."""
        self.tally[2] = len(self.groups)
        for group in self.groups.values():
            group.selective = True

    def is_gate(self, group: Group) -> bool:
        """Whether a group only weighs the others: the sigmoid in sigmoid(a) * tanh(c)."""
        return group.positive if self.weighed else group.nonlinear

    @property
    def gated(self) -> bool:
        """Whether some groups, but not all, only weigh the others."""
        return self.weighed or 0 < self.tally[0] < len(self.groups)

    @property
    def weighed(self) -> bool:
        """Whether some groups, but not all, are positive (a sigmoid, not a SiLU): then only these weigh."""
        return 0 < self.tally[1] < len(self.groups)

    @property
    def selective(self) -> bool:
        """Whether some group is selective."""
        return self.tally[2] > 0

    @property
    def once(self) -> bool:
        """Whether there is a single factor, which occurs once and does not divide."""
        return self.size == 1 and not self.inverse and next(self.factors())[1] == 1


def is_product(facts: Facts, node: Node) -> bool:
    """Whether ``node`` is an elementwise product or quotient."""
    spec = facts.specs.get(node)
    return spec is not None and spec.kind in ("product", "quotient") and spec.elementwise and not spec.terms


def is_denominator(facts: Facts, node: Node, slot: Slot) -> bool:
    """Whether ``slot`` of ``node`` divides."""
    spec = facts.specs[node]
    return spec.kind == "quotient" and slot.name == spec.args[1]


def degree(node: Node, spec: OpSpec) -> float:
    """Degree of homogeneity of a homogeneous operator; 0 if it is not a number."""
    value = bind(node)[spec.degree] if isinstance(spec.degree, str) else spec.degree
    return float(value) if isinstance(value, (int, float)) else 0.0


def is_cast_or_sign(spec: OpSpec) -> bool:
    """Whether an operator only changes precision or sign."""
    return spec.extra.get("form") == "cast" or spec.extra.get("coefficients") == ("-1",)


class Products:
    """The products of a graph, flattened on a walk in graph order.

    Attributes:
        whole: outermost product -> its factors.
        nonlinear: outputs of nonlinearities, through movement, casts, added constants, scalings and powers.
    """

    def __init__(self, facts: Facts, live: Live) -> None:
        self.facts, self.live = facts, live
        self.whole: dict[Node, Product] = {}
        self.nonlinear: set[Node] = set()

    def enter(self, node: Node) -> None:
        """Enter a node with live operands, in graph order."""
        if self._is_nonlinear(node):
            self.nonlinear.add(node)

    def _is_nonlinear(self, node: Node) -> bool:
        spec, operands = self.facts.specs[node], list(dict.fromkeys(self.live[node].values()))
        if spec.kind == "nonlinearity":
            return True
        if spec.kind == "homogeneous" and not (spec.elementwise and degree(node, spec) in (2, 3, 4, 5, 6)):
            return spec.elementwise
        if len(operands) > 1:
            same = is_product(self.facts, node) and len({self.facts.origin[n] for n in operands}) == 1
            return same and any(n in self.nonlinear for n in operands)
        if spec.kind not in ("movement", "linear", "product", "quotient", "homogeneous") or spec.terms or spec.reduces:
            return False
        divides = any(is_denominator(self.facts, node, slot) for slot in self.live[node])
        return divides or operands[0] in self.nonlinear

    def passes(self, node: Node) -> bool:
        """Whether a node is an inner node of the product that uses it, with no other user."""
        if len(node.users) != 1 or node not in self.live or node in self.facts.manual_softmax:
            return False
        spec, (user,) = self.facts.specs.get(node), node.users
        expansion = self.facts.shifted.get(user)
        if spec is None or (expansion is not None and node not in expansion.inside):
            return False
        if node in self.facts.shifted and expansion is None:
            return False
        cast_or_sign = len(self.live[node]) == 1 and spec.elementwise and is_cast_or_sign(spec)
        return is_product(self.facts, node) or cast_or_sign

    def flatten(self, node: Node) -> Product:
        """Flatten a product whose operands are flattened; it takes over the factors of inner products."""
        slots_of: dict[Node, list[Slot]] = {}
        for slot, operand in self.live[node].items():
            while self.passes(operand) and not is_product(self.facts, operand):
                (operand,) = self.live[operand].values()
            slots_of.setdefault(operand, []).append(slot)
        products = [self._part(node, operand, slots) for operand, slots in slots_of.items()]
        product = max(products, key=lambda part: part.size)
        for part in products:
            if part is not product:
                self._merge(product, part)
        product.recurrent |= node in self.facts.recurrent
        self.whole[node] = product
        return product

    def _part(self, node: Node, operand: Node, slots: list[Slot]) -> Product:
        """The factors that one operand contributes to a product, in all slots that read it."""
        if self.passes(operand):
            part = self.whole.pop(operand)
        else:
            part = Product(size=1)
            factors = Group({operand: 1}, operand in self.nonlinear, operand in self.facts.positive, False)
            part.groups[self.facts.origin.get(operand, operand)] = factors
            part.note(factors, 1)
            if operand in self.facts.reduced_from:
                part.reduced.add(operand)
        if len(slots) > 1:
            part.multiplied(len(slots))
        if all(slot in self.facts.selective.get(node, ()) for slot in slots):
            part.select()
        part.inverse ^= is_denominator(self.facts, node, slots[0])
        return part

    def _merge(self, product: Product, part: Product) -> None:
        """Multiply a product with a part, and find the factors that are statistics of others now."""
        facts = self.facts
        proven = {n for n in part.reduced if any(is_statistic_of(facts, n, other) for other, _ in product.factors())}
        if product.reduced:
            proven |= {n for n in product.reduced if any(is_statistic_of(facts, n, m) for m, _ in part.factors())}
        for origin, group in part.groups.items():
            existing = product.groups.get(origin)
            if existing is None:
                product.groups[origin] = group
            else:
                product.note(existing, -1)
                _count_in(existing.factors, group.factors)
                existing.nonlinear |= group.nonlinear
                existing.positive &= group.positive
                existing.selective &= group.selective
            product.note(product.groups[origin], 1)
        _count_in(product.statistics, part.statistics)
        product.size += part.size
        product.recurrent |= part.recurrent
        product.reduced = (product.reduced | part.reduced) - proven
        for node in proven:
            self._set_apart(product, node)

    def _set_apart(self, product: Product, statistic: Node) -> None:
        """Move a factor that proved to be a statistic from its group to the statistics."""
        origin = self.facts.origin.get(statistic, statistic)
        group = product.groups.pop(origin)
        product.note(group, -1)
        _count_in(product.statistics, {statistic: group.factors.pop(statistic)})
        if group.factors:
            group.nonlinear = any(n in self.nonlinear for n in group.factors)
            group.positive = all(n in self.facts.positive for n in group.factors)
            product.groups[origin] = group
            product.note(group, 1)


def _count_in(counts: dict[Node, int], more: Mapping[Node, int]) -> None:
    for node, times in more.items():
        counts[node] = counts.get(node, 0) + times


def find_continued(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.continued``: from the end of an elementwise nonlinearity back to its inner nodes."""
    for user in reversed(graph.nodes):
        spec = facts.specs.get(user)
        if spec is None or not spec.elementwise:
            continue
        operands = facts.operands[user]
        for slot, node in operands.items():
            one = facts.origin.get(user) is facts.origin[node]
            goes_on = user in facts.continued or spec.kind in ("nonlinearity", "homogeneous")
            if is_denominator(facts, user, slot) or (
                one and (goes_on or (spec.kind == "product" and len(operands) > 1))
            ):
                facts.continued.add(node)
