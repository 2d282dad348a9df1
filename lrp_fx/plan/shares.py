"""The shares of the factors of a flattened product, and the fraction of relevance through each of its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from torch.fx import Node

from lrp_fx.analysis.products import Group, Product, Products, degree, is_cast_or_sign, is_product
from lrp_fx.graph.operands import Slot, is_complex
from lrp_fx.rules.table import BY_DEGREE, Split

Number = int | Fraction  #: exact, as counts may exceed the range of a float


class Shares:
    """Shares of the flattened products of a graph."""

    def __init__(self, products: Products) -> None:
        self.facts, self.live = products.facts, products.live
        self._products = products
        self._counts: dict[Node, Number | None] = {}

    def count(self, node: Node) -> Number | None:
        """The number of factors that a tensor stands for: three for x.pow(3), one for relu(x).

        This is its degree of homogeneity in its origin, times the number of factors of the origin if that is a product.
        None for a function that is not homogeneous.
        """
        path = [node]
        while path[-1] not in self._counts and (inner := self._counted_by(path[-1])) is not None:
            path.append(inner)
        for current in reversed(path):
            if current not in self._counts:
                self._counts[current] = self._count(current)
        return self._counts[node]

    def _counted_by(self, node: Node) -> Node | None:
        """The operand whose count gives that of ``node``; None for a node with a count of its own."""
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
        """Number of factors of a group: three for x * x * relu(x), but one if a function is not homogeneous."""
        counts = [(self.count(node), times) for node, times in group.factors.items()]
        total = sum(count * times for count, times in counts if count is not None)
        homogeneous = all(count is not None for count, _ in counts)
        return total if homogeneous and total >= 1 and Fraction(total).denominator == 1 else 1

    def _masks(self, group: Group) -> bool:
        """Whether all factors of a group only say which side of 0 a tensor is on; their slope 1/|x| has a pole."""
        specs = ((node, self.facts.specs.get(node)) for node in group.factors)
        return all(spec is not None and spec.extra.get("jumps") and not is_complex(node) for node, spec in specs)

    def shares(self, product: Product, split: Split, split_of: Callable[[str], Split]) -> dict[Node, Number]:
        """Share of the product's relevance that each factor receives (AttnLRP prop. 3.3, generalised to n factors).

        Args:
            product: a flattened product.
            split: the split of its own rule (:mod:`lrp_fx.rules.table`).
            split_of: role -> its split ("selective", "nonlinearity", "normalization").

        Returns:
            One share per factor, for all its occurrences together. If the split divides by the degree, shares add up
            to 1; otherwise a share is the number of occurrences.
        """
        groups = list(product.groups.values())
        masks = [split.divided and self._masks(group) for group in groups]
        signals = [g for g, mask in zip(groups, masks, strict=True) if not mask or all(masks)]
        split = split if len(signals) > 1 else BY_DEGREE
        weights = [0 if mask and not all(masks) else self._weight(g) for g, mask in zip(groups, masks, strict=True)]
        if split.signals_only and not all(product.is_gate(group) for group in signals):
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
        # f(x) = x h(x): if x takes all and h is held constant, the slope f(x)/x is h(x) in closed form
        origin = self.facts.origin[next(iter(group.factors))]
        carrier = min(group.factors, key=lambda n: (n is not origin, self.facts.depth.get(n, 0)))
        return {n: whole if n is carrier else 0 for n in group.factors}

    def route(self, top: Node, shares: Mapping[Node, Number]) -> dict[Node, dict[Slot, float]]:
        """For each product of the tree, the fraction of its relevance that goes through each slot.

        The relevance of an inner product with several readers is the sum over these.
        """
        times = {top: 1}
        order = [top]
        for node in order:  # an inner product has one user and is listed after it: all its paths are counted by then
            for operand in self.live[node].values():
                if operand not in times and self._products.passes(operand):
                    order.append(operand)
                times[operand] = times.get(operand, 0) + times[node]
        each = {node: Fraction(shares[node]) / times[node] for node in times if node in shares}  # per path
        fractions: dict[Node, dict[Slot, float]] = {}
        for node in reversed(order):
            operands = self.live[node]
            each[node] = sum((each[n] for n in operands.values()), Fraction(0))
            arriving = Fraction(1) if node is top else each[node] * times[node]
            fractions[node] = {
                slot: float(each[n] * times[node] / arriving) if arriving else 1.0 for slot, n in operands.items()
            }
        return fractions
