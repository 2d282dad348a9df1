"""Where the relevance of a flattened product goes: a share for each factor, and what part of it takes which way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from torch.fx import Node

from lrp_fx.analysis.products import Group, Product, Products, degree, is_cast_or_sign, is_product
from lrp_fx.graph.operands import Slot
from lrp_fx.rules.table import BY_DEGREE, Split

Number = int | Fraction  #: exact: a factor may count more often than a float can hold


class Shares:
    """Shares of the products of a graph, which were flattened before."""

    def __init__(self, products: Products) -> None:
        self.facts, self.live = products.facts, products.live
        self._products = products
        self._counts: dict[Node, Number | None] = {}

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
        follows = spec.kind == "homogeneous" or (len(operands) == 1 and is_cast_or_sign(spec))
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
            return sum(self._weight(group) for group in self._products.whole[node].groups.values())
        return 1 if self.facts.origin[node] is node else None

    def _weight(self, group: Group) -> Number:
        """A homogeneous function counts as often as it is multiplied, x * x * relu(x) thrice; any other one once."""
        counts = [(self.count(node), times) for node, times in group.factors.items()]
        total = sum(count * times for count, times in counts if count is not None)
        homogeneous = all(count is not None for count, _ in counts)
        return total if homogeneous and total >= 1 and Fraction(total).denominator == 1 else 1

    def shares(self, product: Product, split: Split, split_of: Callable[[str], Split]) -> dict[Node, Number]:
        """Share of the product's relevance that each factor receives (AttnLRP prop. 3.3, generalised to n factors).

        Args:
            product: a flattened product.
            split: where shares go by its own rule (:mod:`lrp_fx.rules.table`).
            split_of: the same of other roles ("selective", "nonlinearity", "normalization").

        Returns:
            A share per factor, for all the times that it is multiplied. Where the split divides by the degree they add
            up to 1, otherwise every share is the number of times.
        """
        groups = list(product.groups.values())
        split = split if len(groups) > 1 else BY_DEGREE
        weights = [self._weight(group) for group in groups]
        if split.signals_only:
            weights = [0 if product.is_gate(g) else w for g, w in zip(groups, weights, strict=True)]
        if split.divided and product.selective and split_of("selective").signals_only:
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
                if operand not in times and self._products.passes(operand):
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
