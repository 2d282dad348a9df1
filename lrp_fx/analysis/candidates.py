"""The walk on which roles are decided: every node that relevance can reach, with its live operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate
from lrp_fx.analysis.products import Products, is_product
from lrp_fx.graph.operands import Slot


class Candidates:
    """The candidates of a graph, in graph order; whoever walks says where a rule stops relevance.

    Attributes:
        facts: facts of the graph.
        live: nodes that relevance reaches, with their live operands.
        products: the elementwise products so far, flattened.
        counts_positions: whether a table of positions was live at some product.
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
            counts_position: whether the table of positions that a product multiplies is an input there.
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
        """No relevance goes on from the node that was yielded last."""
        del self.live[node]
