"""Products in canonical form: whatever the association, spelling or casts, a list of factors with shares.

``a * (b * c)``, ``x.pow(2) * z``, ``x * rsqrt(mean(x * x)) * w``, ``x * (sigmoid(x) * z)`` and ``a / b`` are trees of
elementwise products, quotients, casts and constant scalings. Flattened, each has factors; factors that are functions of
the same tensor form one group (``x * sigmoid(x)`` is one nonlinearity); a factor that is a statistic of another one
makes the product a normalization.

A product that is multiplied with itself is one node in two slots, so that a factor may be reached in many ways: it is
listed once and counted (2^30 times in thirty squarings). The products of a graph are flattened operand by operand, on
one walk: a product hands its factors on to the one that it goes into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch.fx import Node

from lrp_fx.analysis import Facts
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, bind
from lrp_fx.rules.table import BY_DEGREE, Split

Live = Mapping[Node, Mapping[Slot, Node]]
Number = int | Fraction  #: exact: a factor may count more often than a float can hold


@dataclass
class Group:
    """Factors that are functions of one tensor.

    Attributes:
        factors: each with the number of times that it is multiplied (``x.pow(3)`` is one factor).
        nonlinear: whether one of them is a nonlinearity's output.
        positive: whether they all only weigh a signal.
        selective: whether they all only say what a state takes in or gives out.
    """

    factors: dict[Node, int] = field(default_factory=dict)
    nonlinear: bool = False
    positive: bool = True
    selective: bool = True


@dataclass
class Product:
    """A flattened product.

    Attributes:
        groups: its factors by the tensor that they are functions of.
        statistics: those that are statistics of other factors.
        reduced: those that depend on some tensor only through a reduction, and may prove to be statistics.
        tally: how many groups are nonlinear, positive and selective.
        size: number of factors, each counted once.
        inverse: of a single factor, whether it divides.
        recurrent: whether some product in it carries a state on.
    """

    groups: dict[Node, Group] = field(default_factory=dict)
    statistics: dict[Node, int] = field(default_factory=dict)
    reduced: set[Node] = field(default_factory=set)
    tally: list[int] = field(default_factory=lambda: [0, 0, 0])
    size: int = 0
    inverse: bool = False
    recurrent: bool = False

    def factors(self) -> Iterator[tuple[Node, int]]:
        """Every factor, with the number of times that it is multiplied."""
        for group in self.groups.values():
            yield from group.factors.items()
        yield from self.statistics.items()

    def note(self, group: Group, step: int) -> None:
        """Count a group in, or out before it changes."""
        for index, flag in enumerate((group.nonlinear, group.positive, group.selective)):
            self.tally[index] += step * flag

    def multiplied(self, times: int) -> None:
        """Count every factor this many times as often."""
        for counts in (self.statistics, *(group.factors for group in self.groups.values())):
            counts.update({node: times * count for node, count in counts.items()})

    def select(self) -> None:
        """The whole of it only says what a state takes in or gives out."""
        self.tally[2] = len(self.groups)
        for group in self.groups.values():
            group.selective = True

    def is_gate(self, group: Group) -> bool:
        """Whether a group only weighs the others: of sigmoid(a) * tanh(c) the sigmoid."""
        return group.positive if 0 < self.tally[1] < len(self.groups) else group.nonlinear

    @property
    def role(self) -> str:
        """The role of the product, decided by what is most particular about it."""
        if len(self.groups) > 1:
            nonlinear, positive, selective = self.tally
            if not (0 < positive < len(self.groups) or 0 < nonlinear < len(self.groups)):
                return "selective" if selective else "bilinear"
            return "recurrent-gate" if self.recurrent else "gate"
        if self.statistics:
            return "normalization"
        once = self.size == 1 and next(self.factors())[1] == 1
        return "linear" if once and not self.inverse else "nonlinearity"


def is_product(facts: Facts, node: Node) -> bool:
    """Whether ``node`` is an elementwise product or quotient."""
    spec = facts.specs.get(node)
    return spec is not None and spec.kind in ("product", "quotient") and spec.elementwise and not spec.terms


def is_denominator(facts: Facts, node: Node, slot: Slot) -> bool:
    """Whether ``slot`` of ``node`` divides."""
    spec = facts.specs[node]
    return spec.kind == "quotient" and slot.name == spec.args[1]


def degree(node: Node, spec: OpSpec) -> float:
    """Degree of homogeneity of a homogeneous operator, 0 where it is not a number."""
    value = bind(node)[spec.degree] if isinstance(spec.degree, str) else spec.degree
    return float(value) if isinstance(value, (int, float)) else 0.0


def _is_cast_or_sign(spec: OpSpec) -> bool:
    return spec.extra.get("form") == "cast" or spec.extra.get("coefficients") == ("-1",)


class Products:
    """The products of a graph, flattened on a walk in graph order.

    Attributes:
        whole: the outermost products, each with its factors.
        nonlinear: outputs of nonlinearities, through movement, casts, added constants, scalings and powers.
    """

    def __init__(self, facts: Facts, live: Live) -> None:
        self.facts, self.live = facts, live
        self.whole: dict[Node, Product] = {}
        self.nonlinear: set[Node] = set()
        self._counts: dict[Node, Number | None] = {}

    def enter(self, node: Node) -> None:
        """Take note of a node whose operands are known to be live; before its users are."""
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

    def _passes(self, node: Node) -> bool:
        """Whether a node belongs inside the tree of the product that uses it, and has no other user."""
        if len(node.users) != 1 or node not in self.live or node in self.facts.manual_softmax:
            return False
        spec = self.facts.specs.get(node)
        if spec is None:
            return False
        cast_or_sign = len(self.live[node]) == 1 and spec.elementwise and _is_cast_or_sign(spec)
        return is_product(self.facts, node) or cast_or_sign

    def flatten(self, node: Node) -> Product:
        """The factors of a product whose operands were flattened before; they are its own from now on."""
        ways: dict[Node, list[Slot]] = {}
        for slot, operand in self.live[node].items():
            while self._passes(operand) and not is_product(self.facts, operand):
                (operand,) = self.live[operand].values()
            ways.setdefault(operand, []).append(slot)
        parts = [self._part(node, operand, slots) for operand, slots in ways.items()]
        product = max(parts, key=lambda part: part.size)
        for part in parts:
            if part is not product:
                self._merge(product, part)
        product.recurrent |= node in self.facts.recurrent
        self.whole[node] = product
        return product

    def _part(self, node: Node, operand: Node, slots: list[Slot]) -> Product:
        """What one operand brings into a product, in all slots that read it."""
        if self._passes(operand):
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
        """Multiply a product with a part, and see what is a statistic of what now."""
        facts = self.facts
        proven = {n for n in part.reduced if any(facts.is_statistic_of(n, other) for other, _ in product.factors())}
        if product.reduced:
            proven |= {n for n in product.reduced if any(facts.is_statistic_of(n, m) for m, _ in part.factors())}
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
        """A factor that proved to be a statistic belongs to no group."""
        origin = self.facts.origin.get(statistic, statistic)
        group = product.groups.pop(origin)
        product.note(group, -1)
        _count_in(product.statistics, {statistic: group.factors.pop(statistic)})
        if group.factors:
            group.nonlinear = any(n in self.nonlinear for n in group.factors)
            group.positive = all(n in self.facts.positive for n in group.factors)
            product.groups[origin] = group
            product.note(group, 1)

    def count(self, node: Node) -> Number | None:
        """As how many factors a tensor counts: x.pow(3) as three, relu(x) as one.

        That is its degree of homogeneity in the tensor it is a function of, times the factors of that tensor where it
        is itself a product; None for a function that is not homogeneous.
        """
        way = [node]
        while way[-1] not in self._counts and (inner := self._counted_by(way[-1])) is not None:
            way.append(inner)
        for current in reversed(way):
            if current not in self._counts:
                self._counts[current] = self._count(current)
        return self._counts[node]

    def _counted_by(self, node: Node) -> Node | None:
        """The operand whose count decides that of a node."""
        spec = self.facts.specs.get(node)
        if spec is None or node not in self.live or not spec.elementwise or node in self.facts.manual_softmax:
            return None
        operands = list(self.live[node].values())
        follows = spec.kind == "homogeneous" or (len(operands) == 1 and _is_cast_or_sign(spec))
        return operands[0] if follows else None

    def _count(self, node: Node) -> Number | None:
        spec, inner = self.facts.specs.get(node), self._counted_by(node)
        if inner is not None:
            assert spec is not None
            of_inner = self._counts[inner]
            power = Fraction(degree(node, spec)) if spec.kind == "homogeneous" else 1
            return None if of_inner is None else power * of_inner
        if spec is None or node not in self.live or not spec.elementwise or node in self.facts.manual_softmax:
            return 1
        if is_product(self.facts, node):
            return sum(self._weight(group) for group in self.whole[node].groups.values())
        return 1 if self.facts.origin[node] is node else None

    def _weight(self, group: Group) -> Number:
        """A homogeneous function counts as often as it is multiplied, x * x * relu(x) thrice; any other one once."""
        counts = [(self.count(node), times) for node, times in group.factors.items()]
        total = sum(count * times for count, times in counts if count is not None)
        homogeneous = all(count is not None for count, _ in counts)
        return total if homogeneous and total >= 1 and Fraction(total).denominator == 1 else 1

    def shares(self, product: Product, split_of: Callable[[str], Split]) -> dict[Node, Number]:
        """Share of the product's relevance that each factor receives (AttnLRP prop. 3.3, generalised to n factors).

        Args:
            split_of: where shares go (:mod:`lrp_fx.rules.table`), for a role ("bilinear", "gate", "nonlinearity", ...).

        Returns:
            A share per factor, for all the times that it is multiplied. Where the split divides by the degree they add
            up to 1, otherwise every share is the number of times.
        """
        groups = list(product.groups.values())
        split = split_of(product.role) if len(groups) > 1 else BY_DEGREE
        weights = [self._weight(group) for group in groups]
        if split.signals_only:
            weights = [0 if product.is_gate(g) else w for g, w in zip(groups, weights, strict=True)]
        if split.divided and product.tally[2] and split_of("selective").signals_only:
            weights = [0 if g.selective else w for g, w in zip(groups, weights, strict=True)]
        total = sum(weights) or 1
        natural = not (split.divided and split_of("nonlinearity").divided)
        result: dict[Node, Number] = {}
        for group, weight in zip(groups, weights, strict=True):
            whole = Fraction(weight) / total if split.divided else 1
            result |= self._within(group, whole, natural)
        for statistic, times in product.statistics.items():
            result[statistic] = 0 if split_of("normalization").divided else times
        return result

    def _within(self, group: Group, whole: Number, natural: bool) -> dict[Node, Number]:
        if natural:
            return {n: whole * times for n, times in group.factors.items()}
        counts = {n: (self.count(n) or 0) * times for n, times in group.factors.items()}
        if all(count > 0 for count in counts.values()):
            total = Fraction(sum(counts.values()))
            return {n: whole * count / total for n, count in counts.items()}
        # f(x) = x h(x): the slope f(x)/x is h(x) in closed form when x takes all and h is a constant
        origin = self.facts.origin[next(iter(group.factors))]
        carrier = min(group.factors, key=lambda n: (n is not origin, self.facts.depth.get(n, 0)))
        return {n: whole if n is carrier else 0 for n in group.factors}

    def route(self, top: Node, shares: Mapping[Node, Number]) -> dict[Node, dict[Slot, float]]:
        """What part of the relevance that arrives at a product goes on through each slot, product by product.

        What arrives at a product that several slots read is the sum of what goes through them.
        """
        times = {top: 1}
        order = [top]
        for node in order:  # every product inside has one user: it is listed behind it, when all ways to it are counted
            for operand in self.live[node].values():
                if operand not in times and self._passes(operand):
                    order.append(operand)
                times[operand] = times.get(operand, 0) + times[node]
        each = {node: Fraction(shares[node]) / times[node] for node in times if node in shares}  # what one way brings
        parts: dict[Node, dict[Slot, float]] = {}
        for node in reversed(order):
            operands = self.live[node]
            each[node] = sum((each[n] for n in operands.values()), Fraction(0))
            arriving = Fraction(1) if node is top else each[node] * times[node]
            parts[node] = {
                slot: float(each[n] * times[node] / arriving) if arriving else 1.0 for slot, n in operands.items()
            }
        return parts


def _count_in(counts: dict[Node, int], more: Mapping[Node, int]) -> None:
    for node, times in more.items():
        counts[node] = counts.get(node, 0) + times
