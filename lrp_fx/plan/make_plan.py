"""Stage 3, plan: facts and a rule set -> one decision for each node with relevance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch.fx import Graph, Node

from lrp_fx.analysis import Facts, Source, patterns
from lrp_fx.analysis.candidates import Candidates
from lrp_fx.analysis.conditions.products import contracts
from lrp_fx.analysis.facts import Leaf, System
from lrp_fx.analysis.matching import Candidate, Pattern
from lrp_fx.analysis.products import Products, degree, is_denominator
from lrp_fx.analysis.step_sizes import weighs_by_step_sizes
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import Slot, all_slots
from lrp_fx.operators.table import OpSpec, bind, op_name
from lrp_fx.plan.shares import Shares
from lrp_fx.rules.ruleset import Rule, RuleSet
from lrp_fx.rules.table import CENTRED, DISTRIBUTED, RECTIFIED, SLOPE, STOPPED, Entry, Form, Split, entry

__all__ = ["Decision", "Plan", "make_plan"]

EXACT, STOP, TAYLOR = Rule("exact"), Rule("stop"), Rule("taylor")
UNSTABILISED = Rule("epsilon")  #: an epsilon of 0: the gradient of a linear map
WINNER = "winner-takes-all"


class Term(NamedTuple):
    """A factor of a product that is expanded into a sum.

    Attributes:
        leaf: the factor.
        weighs: whether it only weighs the others: it is held constant in addends with another signal.
    """

    leaf: Leaf
    weighs: bool


@dataclass(frozen=True)
class Decision:
    """The rule at one node, and the operands that it gives relevance to.

    Attributes:
        role: movement, linear, selection, bilinear, gate, nonlinearity, normalization, softmax or attention.
        rule: the rule chosen for that role.
        live: operands that receive relevance.
        factors: factor of each live operand's cotangent (absent: 1; 0: the operand is held constant).
        softmax_share: share of relevance that a fused attention passes to its scores.
        terms: the factors of a product that is expanded into a sum, as one of them is a constant plus a signal.
        system: the triangular system whose matrix and right-hand side share the relevance.
        one_sign: whether the inputs of a layer are nonnegative, and only its positive outputs have relevance.
    """

    role: str
    rule: Rule
    live: dict[Slot, Node]
    factors: dict[Slot, float] = field(default_factory=dict)
    softmax_share: float = 0.0
    terms: tuple[Term, ...] = ()
    system: System | None = None
    one_sign: bool = False

    @property
    def entry(self) -> Entry:
        """The rule's entry in the rule table."""
        return entry(self.role, self.rule.name)

    def form(self, node: Node, spec: OpSpec) -> Form:
        """The form of the rule at ``node``."""
        if self.terms:
            return DISTRIBUTED
        several = isinstance(node.meta.get("val"), (tuple, list)) and spec.kind == "homogeneous"
        sums = self.role == spec.kind == "linear" and len(self.live) > 1  # a batch norm behind a layer is no sum
        kinds = {
            "system": self.system is not None, "counted": "count" in spec.extra, "several": several, "sum": sums,
            "one sign": self.one_sign,
        }  # fmt: skip
        return self.entry.form(next((kind for kind, holds in kinds.items() if holds), spec.kind))


@dataclass
class Plan:
    """A rule set applied to a graph.

    Attributes:
        ruleset: the rule set.
        facts: the facts of the graph.
        decisions: one for each node with relevance.
        stopped: role of every node at which a rule stops relevance.
        differentiable: nodes that autograd would differentiate, a superset of ``decisions`` (it includes statistics).
        positions: position tables that the rule set treats as sources.
    """

    ruleset: RuleSet
    facts: Facts
    decisions: dict[Node, Decision] = field(default_factory=dict)
    stopped: dict[Node, str] = field(default_factory=dict)
    differentiable: set[Node] = field(default_factory=set)
    positions: list[Source] = field(default_factory=list)

    @property
    def sources(self) -> list[Source]:
        """The sources of relevance: the inputs, then position tables."""
        return self.facts.sources + self.positions

    @property
    def is_linear(self) -> bool:
        """Whether relevance is linear in the target: no rule cuts cotangents, none is a custom one."""
        decisions = self.decisions.values()
        return not any(d.rule.custom or RECTIFIED in d.entry.forms.values() for d in decisions)

    @functools.cached_property
    def feeds_zeros(self) -> bool:
        """Whether an input of 0 can have relevance."""
        return any(decision.entry.feeds_zeros for decision in self.decisions.values())


def make_plan(graph: Graph, facts: Facts, ruleset: RuleSet) -> Plan:
    """Choose a rule for every node that carries relevance.

    The first walk finds live operands and roles (a rule that stops relevance makes later products linear). The second
    one divides the relevance of product trees, each at its top.
    """
    plan = Plan(ruleset, facts)
    candidates = Candidates(facts)
    for candidate in candidates.walk(graph, functools.partial(counts_position, plan)):
        node, decision = candidate.node, _decide(plan, candidate)
        if decision.entry.form("") is STOPPED or not decision.live:
            plan.stopped[node] = decision.role
            candidates.stop(node)
        else:
            plan.decisions[node] = decision
    plan.positions = facts.positions if candidates.counts_positions else []
    plan.differentiable = set(candidates.live) | (facts.tabled if plan.positions else set())
    _share_products(plan, candidates.products)
    _distribute(plan)
    _solve(plan)
    _prune(plan, graph)
    _find_one_sign(plan)
    return plan


def _prune(plan: Plan, graph: Graph) -> None:
    """Drop decisions at nodes without relevance (statistics, closed-form slopes, unused results)."""
    reached: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            reached.update(node.all_input_nodes)
        decision = plan.decisions.get(node)
        if decision is None:
            continue
        if node not in reached:
            del plan.decisions[node]
            continue
        reached.update(n for slot, n in decision.live.items() if decision.factors.get(slot, 1.0) != 0)


def _rule(plan: Plan, role: str | tuple[str, ...], node: Node) -> Rule:
    return plan.ruleset.rule(role, module_path(node), op_name(node))


def _entry(plan: Plan, node: Node, role: str) -> Entry:
    return entry(role, _rule(plan, role, node).name)


def _split(plan: Plan, node: Node, role: str) -> Split:
    return _entry(plan, node, role).split


def counts_position(plan: Plan, node: Node) -> bool:
    """Whether the rule set treats the position table that ``node`` multiplies as a source."""
    return _entry(plan, node, "position").form("") is not STOPPED


def _decide(plan: Plan, candidate: Candidate) -> Decision:
    """The pattern of the node gives its role, the rule set a rule for that role."""
    pattern = patterns.recognise(candidate).pattern
    node, spec, operands = candidate.node, candidate.spec, dict(candidate.live)
    if contracts.holds(candidate):
        return _multilinear(plan, node, spec, operands, pattern.role)
    if pattern in _SPECIAL:
        return _SPECIAL[pattern](plan, node, spec, operands)
    roles = _gates(candidate) if pattern is patterns.GATE else pattern.role
    return Decision(pattern.role, _rule(plan, roles, node), operands)


def _gates(candidate: Candidate) -> tuple[str, ...]:
    """The roles of a gate, narrowest first."""
    if candidate.product is None or not candidate.product.weighed:
        return ("gate",)
    narrowest = ("step-size",) if weighs_by_step_sizes(candidate.facts, candidate.product) else ()
    return (*narrowest, "positive-gate", "gate")


def _movement(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    return Decision("movement", EXACT, operands)


def _softmax(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """In a running softmax the division follows the product with the values (``analysis.softmax``).

    Values have their share as if the weights were normalized first. The divisions and rescalings are the softmax; their
    weight operand has the share of the weights in the product with the values.
    """
    rule, mixing = _rule(plan, "softmax", node), plan.facts.mixing.get(node)
    if mixing is None:
        return Decision("softmax", rule, operands)
    weight = mixing.slots[node]
    if weight not in operands:
        return Decision("linear", _rule(plan, "linear", node), operands)
    contraction = next(n for n in mixing.contractions if n in plan.decisions)
    share = plan.decisions[contraction].factors.get(mixing.slots[contraction], 1.0)
    return Decision("softmax", rule, operands, {weight: share} if share != 1 else {})


def _function(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """First-order Taylor, as for softmax: x times the gradient; the ledger books the rest."""
    rule = _rule(plan, "nonlinearity", node)
    slope = entry("nonlinearity", rule.name).form("function") in (SLOPE, CENTRED)
    return Decision("nonlinearity", TAYLOR if slope else rule, operands)


def _selection(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """Rules over a window need an operator that averages over the same windows; without one the winner takes all."""
    rule, dilation = _rule(plan, "selection", node), bind(node).get("dilation", 1)
    dense = all(d == 1 for d in (dilation if isinstance(dilation, (list, tuple)) else [dilation]))
    if entry("selection", rule.name).window and not ("mean" in spec.extra and dense):
        rule = replace(rule, name=WINNER)
    return Decision("selection", rule, operands)


def _folded(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """A batch norm behind a layer is folded into it; the layer's rule applies to the output of the batch norm."""
    layer = plan.facts.folded[node]
    layer_decision = plan.decisions[layer]
    if layer_decision.entry.split.divided:
        plan.decisions[layer] = replace(layer_decision, rule=UNSTABILISED)
    return Decision("linear", layer_decision.rule, operands)


def _recurrent_sum(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """The sum of new input and carried state, a role of its own; with a single live operand it is "linear"."""
    roles = ("recurrent-sum", "linear") if len(operands) > 1 else "linear"
    return Decision("linear", _rule(plan, roles, node), operands)


def _multilinear(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node], role: str) -> Decision:
    """Linear, convolution, matmul, einsum, ...: live factors share evenly; added terms keep their own relevance."""
    factors = [slot for slot in operands if slot.name in spec.args]
    divisors = [slot for slot in factors if is_denominator(plan.facts, node, slot)]
    layer = plan.facts.layers.get(node)
    rule = _rule(plan, layer.roles if layer is not None and role == "linear" else role, node)
    signals, split = factors, entry(role, rule.name).split
    if split.signals_only:
        weighing = plan.facts.selective.get(node, set())
        signals = [slot for slot in factors if operands[slot] not in plan.facts.positive and slot not in weighing]
    share = 1 / len(signals) if split.divided and signals else 1.0
    shares = {slot: share if slot in signals else 0.0 for slot in factors}
    if split.divided:  # a divisor has degree -1
        shares |= {slot: -shares[slot] for slot in divisors}
    return Decision(role, rule, operands, {slot: amount for slot, amount in shares.items() if amount != 1})


def _homogeneous(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """f(t x) = t^k f(x) gives x f'(x) = k f(x): the identity rule is the gradient divided by k."""
    power = degree(node, spec)
    if power == 0:
        return Decision("nonlinearity", STOP, operands)
    rule = _rule(plan, "nonlinearity", node)
    divided = entry("nonlinearity", rule.name).split.divided and power != 1
    return Decision("nonlinearity", rule, operands, {slot: 1 / power for slot in operands} if divided else {})


def _attention(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """Two uniform products around a softmax: values get half, queries and keys a quarter each (AttnLRP 3.3)."""
    bilinear, softmax = _rule(plan, "bilinear", node), _rule(plan, "softmax", node)
    products, scoring = entry("bilinear", bilinear.name), entry("softmax", softmax.name)
    values = {s for s in operands if s.name == "value"}
    scores = {s for s in operands if s.name != "value"} if scoring.form("") is not STOPPED else set()
    receiving = {slot: n for slot, n in operands.items() if slot in values | scores}
    if products.form("") is STOPPED:
        return Decision("attention", STOP, {})
    share = 1 / (bool(values) + bool(scores)) if products.split.divided and receiving else 1.0
    pair = [s for s in scores if s.name in ("query", "key")]
    factors = {slot: share for slot in values | scores}
    factors |= {slot: share / len(pair) for slot in pair if products.split.divided}
    rule = Rule(f"{bilinear.name}+{softmax.name}")
    return Decision(
        "attention", rule, receiving, {s: f for s, f in factors.items() if f != 1}, share if scores else 0.0
    )


#: patterns whose decision depends on more than the role
_SPECIAL: dict[Pattern, Callable[[Plan, Node, OpSpec, dict[Slot, Node]], Decision]] = {
    patterns.SOFTMAX: _softmax,
    patterns.MOVEMENT: _movement,
    patterns.ATTENTION: _attention,
    patterns.HOMOGENEOUS: _homogeneous,
    patterns.FUNCTION: _function,
    patterns.SELECTION: _selection,
    patterns.FOLDED: _folded,
    patterns.RECURRENT_SUM: _recurrent_sum,
}


def _distribute(plan: Plan) -> None:
    """Expand products x (c + s) whose rule divides: x has all of c x, and shares x s (``analysis.shifted``)."""
    for node, expansion in plan.facts.shifted.items():
        decision = plan.decisions.get(node)
        if decision is None or not decision.entry.split.divided or not all(_reached(plan, x) for x in expansion.leaves):
            continue
        terms = tuple(Term(leaf, _weighs(plan, leaf)) for leaf in expansion.leaves)
        if not any(term.leaf.shift is not None and not term.weighs for term in terms):
            continue
        plan.decisions[node] = replace(decision, terms=terms, factors={})
        for inner in expansion.inside:
            plan.decisions[inner] = replace(plan.decisions[inner], factors={})


def _solve(plan: Plan) -> None:
    """Enter triangular systems, whose products of triangle and solution are divided (``analysis.systems``).

    With a diagonal of ones the solution has no degree in the matrix, so this form then holds for every rule.
    """
    for node, system in plan.facts.systems.items():
        decision, reader = plan.decisions.get(node), plan.decisions.get(system.reader)
        if decision is None or reader is None or reader.factors.get(system.matrix, 1.0) == 0:
            continue
        divided = decision.entry.split.divided
        if system.matrix in reader.live and (divided or system.unit):
            plan.decisions[node] = replace(decision, system=system, factors={} if divided else decision.factors)


def _find_one_sign(plan: Plan) -> None:
    """Mark layers between ReLUs, where rules on signs of contributions need fewer runs (``analysis.signs``)."""
    facts = plan.facts
    for node, decision in plan.decisions.items():
        layer = facts.folded.get(node, node)
        if not decision.entry.on_parts or layer not in facts.layers or layer in facts.thresholds:
            continue
        nonnegative = all_slots(layer)[facts.layers[layer].input] in facts.nonnegative
        if nonnegative and not decision.rule.custom and all(_rectifies(plan, user) for user in node.users):
            plan.decisions[node] = replace(decision, one_sign=True)


def _rectifies(plan: Plan, node: Node) -> bool:
    """Whether ``node`` and the cotangent of its operand are 0 wherever its operand is negative."""
    decision = plan.decisions.get(node)
    return node in plan.facts.rectifiers and decision is not None and RECTIFIED not in decision.entry.forms.values()


def _reached(plan: Plan, leaf: Leaf) -> bool:
    """Whether relevance reaches a factor under the rule set, and the signal in its sum."""
    live = all(n in plan.decisions and slot in plan.decisions[n].live for n, slot in leaf.way)
    if leaf.shift is None or not live:
        return live
    added = all(n in plan.decisions and slot in plan.decisions[n].live for n, slot, _ in leaf.shift.signals)
    return added and all(n in plan.decisions for n in leaf.shift.sums)


def _weighs(plan: Plan, leaf: Leaf) -> bool:
    return any(plan.decisions[n].factors.get(slot, 1.0) == 0 for n, slot in leaf.way)


def _share_products(plan: Plan, products: Products) -> None:
    """Second walk: divide the relevance of every product tree, as one factor per edge of the tree."""
    facts, shares = plan.facts, Shares(products)
    for top, product in products.whole.items():
        if top not in plan.decisions:
            continue
        decision = plan.decisions[top]
        share = shares.shares(product, decision.entry.split, functools.partial(_split, plan, top))
        natural = not _split(plan, top, "nonlinearity").divided
        if natural and all(share[factor] == times for factor, times in product.factors()):
            continue
        for node, fractions in shares.route(top, share).items():
            # a reciprocal has degree -1: its identity rule is the negative gradient
            signs = {slot: -1.0 if is_denominator(facts, node, slot) and not natural else 1.0 for slot in fractions}
            factors = {slot: signs[slot] * part for slot, part in fractions.items() if signs[slot] * part != 1}
            plan.decisions[node] = replace(plan.decisions[node], factors=factors)
