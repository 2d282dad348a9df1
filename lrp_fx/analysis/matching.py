"""Patterns: variants of named conditions on a node, each condition with a sentence.

A pattern matches if all conditions of one of its variants hold; they are tried in order. If it does not match, the
first condition that fails is the reason.
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
    """A node that patterns are tried on.

    Attributes:
        facts: facts of its graph.
        node: a declared node that relevance can reach.
        live: its operands that relevance reaches under the rules chosen so far; in analysis, all carrying operands.
        product: the elementwise product that ends here, flattened; None for other nodes and inside a softmax.
        nonlinear: outputs of nonlinearities up to here, also moved, shifted and scaled.
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
        """The live factors of a product, without added terms."""
        return [n for slot, n in self.live.items() if slot.name in self.spec.args]


def before_rules(facts: Facts, node: Node) -> Candidate:
    """A node as analysis sees it, before any rule: every carrying operand is live."""
    return Candidate(facts, node, facts.operands[node])


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition on a node.

    Attributes:
        says: the condition as a sentence.
        holds: whether it holds, given that the conditions before it in the same variant hold.
    """

    says: str
    holds: Callable[[Candidate], bool]


def condition(holds: Callable[[Candidate], bool]) -> Condition:
    """Make a function of a candidate a condition; its docstring is the sentence."""
    return Condition(holds.__doc__ or holds.__name__.replace("_", " "), holds)


@dataclass(frozen=True)
class Miss:
    """Why a pattern does not match: in the variant with most conditions that hold, the first one that fails."""

    variant: str
    condition: Condition
    after: int


@dataclass(frozen=True, eq=False)
class Pattern:
    """One entry of the pattern table.

    Attributes:
        name: its name in reports.
        role: the role of nodes that match; "" for a pattern of several nodes, which have roles by other entries.
        variants: spelling -> conditions, all of which must hold.
        law: the law that gives its rule.
        source: the paper with that law.
        examples: Python code that matches.
        counterexample: similar Python code that must not match.
        missing: the condition that fails for the counterexample.
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
        """Why it does not match; None if it does."""
        misses = []
        for variant, conditions in self.variants.items():
            failing = next((i for i, condition in enumerate(conditions) if not condition.holds(candidate)), None)
            if failing is None:
                return None
            misses.append(Miss(variant, conditions[failing], failing))
        return max(misses, key=lambda miss: miss.after)
