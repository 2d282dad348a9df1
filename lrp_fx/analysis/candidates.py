"""The walk that decides roles: every node that relevance can reach, with its live operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate
from lrp_fx.analysis.products import Products, is_product
from lrp_fx.graph.operands import Slot


class Candidates:
    """The candidates of a graph, in graph order; the caller calls :meth:`stop` where a rule stops relevance.

    Attributes:
        facts: facts of the graph.
        live: nodes that relevance reaches, with their live operands.
        products: the elementwise products up to here, flattened.
        counts_positions: whether a position table was live at some product.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.live: dict[Node, dict[Slot, Node]] = {source.node: {} for source in facts.sources}
        self.products = Products(facts, self.live)
        self.counts_positions = False

    def walk(self, graph: Graph, counts_position: Callable[[Node], bool]) -> Iterator[Candidate]:
        """Yield the candidates of a graph.

        Args:
            graph: the captured graph.
            counts_position: product -> whether the position table that it multiplies is a source there.
        """
        facts = self.facts
        for node in graph.nodes:
            if node not in facts.specs:
                continue
            operands = {slot: n for slot, n in facts.operands[node].items() if n in self.live}
            if not operands:
                continue
            if node in facts.positional and counts_position(node):
                operands |= facts.positional[node]
                self.counts_positions = True
            self.live[node] = operands
            self.products.enter(node)
            flattened = is_product(facts, node) and node not in facts.manual_softmax
            product = self.products.flatten(node) if flattened else None
            yield Candidate(facts, node, operands, product, self.products.nonlinear)

    def stop(self, node: Node) -> None:
        """Stop relevance at ``node``, the last one that was yielded."""
        del self.live[node]
