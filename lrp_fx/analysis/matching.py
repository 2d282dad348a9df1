"""What a pattern is: named conditions on a node, each with a sentence that says what must hold.

A pattern matches where all conditions of one of its variants hold, asked in order. Where it does not match, the first
condition that fails says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.products import Product
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec


@dataclass(eq=False)
class Candidate:
    """A node that patterns are tried on, with what their conditions look at.

    Attributes:
        facts: facts of its graph.
        node: a node with a declaration, that relevance can reach.
        live: its operands that relevance reaches under the rules chosen so far; in analysis, all that carry.
        product: the elementwise product that ends here, flattened; None for other nodes, and inside a softmax.
        nonlinear: nodes so far that are outputs of nonlinearities, moved, shifted and scaled at most.
    """

    facts: Facts
    node: Node
    live: Mapping[Slot, Node]
    product: Product | None = None
    nonlinear: Set[Node] = frozenset()

    @cached_property
    def spec(self) -> OpSpec:
        """Declaration of its operator."""
        return self.facts.specs[self.node]

    @property
    def carrying(self) -> dict[Slot, Node]:
        """Its operands that can carry relevance, whatever the rules."""
        return self.facts.operands[self.node]

    @property
    def first(self) -> Node:
        """Its first operand that can carry relevance."""
        return next(iter(self.carrying.values()))

    @property
    def factors(self) -> list[Node]:
        """Of a product, the live operands that are multiplied (not those that are added)."""
        return [n for slot, n in self.live.items() if slot.name in self.spec.args]


def before_rules(facts: Facts, node: Node) -> Candidate:
    """A node as analysis sees it, before any rule: every carrying operand is live."""
    return Candidate(facts, node, facts.operands[node])


@dataclass(frozen=True, eq=False)
class Condition:
    """Something that must hold at a node.

    Attributes:
        says: what must hold, a sentence.
        holds: whether it does; the conditions before it in the same variant hold.
    """

    says: str
    holds: Callable[[Candidate], bool]


def condition(holds: Callable[[Candidate], bool]) -> Condition:
    """Make a function of a candidate a condition; its docstring says what must hold."""
    return Condition(holds.__doc__ or holds.__name__.replace("_", " "), holds)


@dataclass(frozen=True)
class Miss:
    """Why a pattern does not match: the first condition that fails, of the variant in which most conditions hold."""

    variant: str
    condition: Condition
    after: int


@dataclass(frozen=True, eq=False)
class Pattern:
    """One entry of the pattern table.

    Attributes:
        name: what it is called in reports.
        role: the role that it gives a node; "" for a pattern of several nodes, which have roles by other entries.
        variants: ways to write it -> conditions, all of which must hold.
        law: the law that gives its rule.
        source: where that law is published.
        examples: Python that it recognises.
        counterexample: Python that looks similar, which it must not recognise.
        missing: the condition that the counterexample lacks.
    """

    name: str
    role: str
    variants: Mapping[str, tuple[Condition, ...]]
    law: str
    source: str
    examples: tuple[str, ...]
    counterexample: str
    missing: Condition

    def match(self, candidate: Candidate) -> str | None:
        """The first variant all of whose conditions hold, or None."""
        for variant, conditions in self.variants.items():
            for condition in conditions:
                if not condition.holds(candidate):
                    break
            else:
                return variant
        return None

    def holds(self, variant: str, candidate: Candidate) -> bool:
        """Whether all conditions of one variant hold."""
        return all(condition.holds(candidate) for condition in self.variants[variant])

    def miss(self, candidate: Candidate) -> Miss | None:
        """Why it does not match; None where it does."""
        misses = []
        for variant, conditions in self.variants.items():
            failing = next((i for i, condition in enumerate(conditions) if not condition.holds(candidate)), None)
            if failing is None:
                return None
            misses.append(Miss(variant, conditions[failing], failing))
        return max(misses, key=lambda miss: miss.after)
