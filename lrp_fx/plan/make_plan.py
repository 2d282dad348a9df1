"""Stage 3, choice: facts + rule set -> a plan, one decision per node that relevance flows through."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from torch.fx import Graph, Node

from lrp_fx.analysis import Facts, Source
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import Slot, is_complex
from lrp_fx.operators.table import OpSpec, bind, op_name
from lrp_fx.plan.products import Products, degree, is_denominator, is_product
from lrp_fx.rules.ruleset import Rule, RuleSet
from lrp_fx.rules.table import SLOPE, STOPPED, Entry, Form, Split, entry

__all__ = ["Decision", "Plan", "make_plan"]

EXACT, STOP, TAYLOR = Rule("exact"), Rule("stop"), Rule("taylor")
UNSTABILISED = Rule("epsilon")  #: an epsilon of 0: the gradient of a linear map
WINNER = "winner-takes-all"


@dataclass(frozen=True)
class Decision:
    """What happens at one node.

    Attributes:
        role: movement, linear, selection, bilinear, gate, nonlinearity, normalization, softmax or attention.
        rule: the rule chosen for that role.
        live: operands that receive relevance.
        factors: what each live operand's cotangent is multiplied by (0: the operand is a constant here; absent: 1).
        softmax_share: share of relevance that a fused attention passes to its scores.
    """

    role: str
    rule: Rule
    live: dict[Slot, Node]
    factors: dict[Slot, float] = field(default_factory=dict)
    softmax_share: float = 0.0

    @property
    def entry(self) -> Entry:
        """The rule's entry in the rule table."""
        return entry(self.role, self.rule.name)

    def form(self, node: Node, spec: OpSpec) -> Form:
        """How the rule is carried out at ``node``."""
        several = isinstance(node.meta.get("val"), (tuple, list)) and spec.kind == "homogeneous"
        return self.entry.form("counted" if "count" in spec.extra else "several" if several else spec.kind)


@dataclass
class Plan:
    """A rule set applied to a graph.

    Attributes:
        ruleset: the rule set.
        facts: what it was applied to.
        decisions: one per node that relevance flows through.
        stopped: role of every node whose relevance a rule stops.
        differentiable: nodes through which autograd would flow (a superset of ``decisions``: statistics are in it).
        positions: position tables that the rule set treats as inputs.
    """

    ruleset: RuleSet
    facts: Facts
    decisions: dict[Node, Decision] = field(default_factory=dict)
    stopped: dict[Node, str] = field(default_factory=dict)
    differentiable: set[Node] = field(default_factory=set)
    positions: list[Source] = field(default_factory=list)

    @property
    def sources(self) -> list[Source]:
        """Where relevance is collected: at the inputs, then at position tables."""
        return self.facts.sources + self.positions

    @property
    def blind(self) -> bool:
        """Whether an input that is 0 can have relevance."""
        return any(
            decision.entry.feeds_zeros or (decision.entry.shares is not None and node in self.facts.thresholds)
            for node, decision in self.decisions.items()
        )


def make_plan(graph: Graph, facts: Facts, ruleset: RuleSet) -> Plan:
    """Choose a rule for every node that carries relevance.

    Two walks: first which operands are live and what role each node has (a rule may stop relevance, which makes later
    products linear), then the shares of products, which are decided at the top of each product tree.
    """
    plan = Plan(ruleset, facts)
    live: dict[Node, dict[Slot, Node]] = {source.node: {} for source in facts.sources}
    products, continued = Products(facts, live), _continued(graph, facts)
    for node in graph.nodes:
        if node not in facts.specs:
            continue
        operands = {slot: n for slot, n in facts.operands[node].items() if n in live}
        if not operands:
            continue
        if node in facts.positional and _entry(plan, node, "position").form("") is not STOPPED:
            operands |= facts.positional[node]
            plan.positions = facts.positions
        live[node] = operands
        products.enter(node)
        decision = _decide(plan, node, operands, products, continued)
        if decision.entry.form("") is STOPPED or not decision.live:
            plan.stopped[node] = decision.role
            del live[node]
        else:
            plan.decisions[node] = decision
    plan.differentiable = set(live) | (facts.tabled if plan.positions else set())
    _share_products(plan, products)
    _prune(plan, graph)
    return plan


def _prune(plan: Plan, graph: Graph) -> None:
    """Drop decisions at nodes that relevance never arrives at (statistics, closed-form slopes, unused results)."""
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


def _decide(plan: Plan, node: Node, operands: dict[Slot, Node], products: Products, continued: set[Node]) -> Decision:
    facts, spec = plan.facts, plan.facts.specs[node]
    if node in facts.manual_softmax:
        return Decision("softmax", _rule(plan, "softmax", node), operands)
    if spec.kind == "movement":
        return Decision("movement", EXACT, operands)
    if spec.kind == "attention":
        return _attention(plan, node, operands)
    if is_product(facts, node):
        role = products.flatten(node).role
        return Decision(role, _rule(plan, role, node), operands)
    if spec.kind in ("product", "quotient"):
        return _multilinear(plan, node, spec, operands)
    if spec.kind == "homogeneous":
        return _homogeneous(plan, node, spec, operands)
    if spec.kind == "selection":
        return _selection(plan, node, spec, operands)
    if _is_function(spec, operands):
        return _function(plan, node, operands)
    if node in facts.folded and facts.folded[node] in plan.decisions:
        return _folded(plan, node, operands)
    interior = spec.kind == "linear" and _is_interior(node, operands, products, continued)
    role = "nonlinearity" if interior or spec.kind == "function" else spec.kind
    return Decision(role, _rule(plan, role, node), operands)


def _is_function(spec: OpSpec, operands: dict[Slot, Node]) -> bool:
    """Whether a node is a function of several numbers at once (a complex number is two), so that it has no slope."""
    if spec.kind == "function":
        return len(operands) > 1 or not spec.elementwise
    return spec.kind == "nonlinearity" and any(is_complex(n) for n in operands.values())


def _function(plan: Plan, node: Node, operands: dict[Slot, Node]) -> Decision:
    """First-order Taylor, as for softmax: x times the natural gradient; the rest is an entry of its own."""
    rule = _rule(plan, "nonlinearity", node)
    slope = entry("nonlinearity", rule.name).form("function") is SLOPE
    return Decision("nonlinearity", TAYLOR if slope else rule, operands)


def _selection(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """Relevance is spread where there is an operator that averages over the same windows; else the winner takes all."""
    rule, dilation = _rule(plan, "selection", node), bind(node).get("dilation", 1)
    dense = all(d == 1 for d in (dilation if isinstance(dilation, (list, tuple)) else [dilation]))
    if entry("selection", rule.name).window and not ("mean" in spec.extra and dense):
        rule = replace(rule, name=WINNER)
    return Decision("selection", rule, operands)


def _folded(plan: Plan, node: Node, operands: dict[Slot, Node]) -> Decision:
    """A layer and the normalization over the batch that scales it are one layer: its rule applies behind both."""
    layer = plan.facts.folded[node]
    layer_decision = plan.decisions[layer]
    if layer_decision.entry.split.divided:
        plan.decisions[layer] = replace(layer_decision, rule=UNSTABILISED)
    return Decision("linear", layer_decision.rule, operands)


def _multilinear(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """Linear, convolution, matmul, einsum, ...: uniform over the factors that carry; added terms keep theirs."""
    factors = [slot for slot in operands if slot.name in spec.args]
    divisors = [slot for slot in factors if is_denominator(plan.facts, node, slot)]
    role = "bilinear" if len(factors) > 1 else "nonlinearity" if divisors else "linear"
    if role == "bilinear" and node in plan.facts.recurrent:
        role = "recurrent-gate"
    elif role == "bilinear" and node in plan.facts.selective:
        role = "selective"
    elif role == "bilinear" and _is_mixture(plan.facts, [operands[slot] for slot in factors]):
        role = "gate"
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


def _is_mixture(facts: Facts, factors: list[Node]) -> bool:
    """Whether weights without sign mix signals; those of a softmax are attention, whose own rules apply."""
    weights = [n for n in factors if n in facts.positive]
    return 0 < len(weights) < len(factors) and not all(_is_softmax(facts, n) for n in weights)


def _is_softmax(facts: Facts, node: Node) -> bool:
    while node in facts.specs and facts.specs[node].kind == "movement" and len(facts.operands[node]) == 1:
        node = next(iter(facts.operands[node].values()))
    return node in facts.manual_softmax or (node in facts.specs and facts.specs[node].kind == "softmax")


def _homogeneous(plan: Plan, node: Node, spec: OpSpec, operands: dict[Slot, Node]) -> Decision:
    """f(t x) = t^k f(x) gives x f'(x) = k f(x): the identity rule is the gradient divided by k."""
    if "count" in spec.extra:
        return Decision("bilinear", _rule(plan, "bilinear", node), operands)
    power = degree(node, spec)
    if power == 0:
        return Decision("nonlinearity", STOP, operands)
    rule = _rule(plan, "nonlinearity", node)
    divided = entry("nonlinearity", rule.name).split.divided and power != 1
    return Decision("nonlinearity", rule, operands, {slot: 1 / power for slot in operands} if divided else {})


def _attention(plan: Plan, node: Node, operands: dict[Slot, Node]) -> Decision:
    """Two uniform products around a softmax: values get half, queries and keys a quarter each (design, AttnLRP 3.3)."""
    bilinear, softmax = _rule(plan, "bilinear", node), _rule(plan, "softmax", node)
    products, scoring = entry("bilinear", bilinear.name), entry("softmax", softmax.name)
    values = {s for s in operands if s.name == "value"}
    scores = {s for s in operands if s.name != "value"} if scoring.form("") is not STOPPED else set()
    kept = {slot: n for slot, n in operands.items() if slot in values | scores}
    if products.form("") is STOPPED:
        return Decision("attention", STOP, {})
    share = 1 / (bool(values) + bool(scores)) if products.split.divided and kept else 1.0
    pair = [s for s in scores if s.name in ("query", "key")]
    factors = {slot: share for slot in values | scores}
    factors |= {slot: share / len(pair) for slot in pair if products.split.divided}
    rule = Rule(f"{bilinear.name}+{softmax.name}")
    return Decision("attention", rule, kept, {s: f for s, f in factors.items() if f != 1}, share if scores else 0.0)


def _is_interior(node: Node, operands: dict[Slot, Node], products: Products, continued: set[Node]) -> bool:
    """Whether a literal added here lies inside one elementwise nonlinearity, as in ``1 / (1 + exp(-x))``.

    Such a constant belongs to the definition of the function; it takes no relevance of its own.
    """
    literals = any(isinstance(a, (int, float)) for a in node.args)
    inside = literals and len(operands) == 1 and node in continued
    return inside and next(iter(operands.values())) in products.nonlinear


def _continued(graph: Graph, facts: Facts) -> set[Node]:
    """Nodes whose functions go on in an elementwise nonlinearity: as 1 + exp(-x) does in its reciprocal."""
    continued: set[Node] = set()
    for user in reversed(graph.nodes):
        spec = facts.specs.get(user)
        if spec is None or not spec.elementwise:
            continue
        operands = facts.operands[user]
        for slot, node in operands.items():
            if facts.origin.get(user) is facts.origin[node] and (
                user in continued
                or spec.kind in ("nonlinearity", "homogeneous")
                or is_denominator(facts, user, slot)
                or (spec.kind == "product" and len(operands) > 1)
            ):
                continued.add(node)
    return continued


def _share_products(plan: Plan, products: Products) -> None:
    """Second walk: shares of every product tree, turned into a factor per edge of the tree."""
    facts = plan.facts
    for top, product in products.whole.items():
        if top not in plan.decisions:
            continue
        share = products.shares(product, functools.partial(_split, plan, top))
        natural = not _split(plan, top, "nonlinearity").divided
        if natural and all(share[factor] == times for factor, times in product.factors()):
            continue
        for node, parts in products.route(top, share).items():
            # a reciprocal has degree -1: its identity rule is the gradient with its sign changed
            signs = {slot: -1.0 if is_denominator(facts, node, slot) and not natural else 1.0 for slot in parts}
            factors = {slot: signs[slot] * part for slot, part in parts.items() if signs[slot] * part != 1}
            plan.decisions[node] = replace(plan.decisions[node], factors=factors)
