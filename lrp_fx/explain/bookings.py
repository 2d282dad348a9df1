"""Relevance absorbed by each form of the rule table (:mod:`lrp_fx.rules.table`): one row of :data:`BOOK` each.

Every amount is computed on its own, from a second run of the operator on its recorded arguments, and not as a
difference of relevance that arrives and leaves. The ledger's residual and the first check test that all adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.analysis.products import degree, is_denominator
from lrp_fx.explain.account import Account, LayerRun, safe_dot
from lrp_fx.explain.rerun import call, gradients, natural, plain, positional, value_of
from lrp_fx.graph.operands import Slot, addends, adds_a_number, all_slots, declared, is_float
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.table import OpSpec, bind
from lrp_fx.plan import Decision, Plan
from lrp_fx.rules import table
from lrp_fx.rules.formulas import favoured, shared, stabilised, without_triangle
from lrp_fx.rules.functions import relevance_of
from lrp_fx.rules.registry import custom_backward
from lrp_fx.rules.slopes import at_zero, has_offset, singular_radius


class Amount(NamedTuple):
    """Relevance absorbed at a node.

    Attributes:
        category: category of the ledger.
        name: the parameter, input or operator that absorbs it.
        amount: relevance, summed over the batch.
        relevance: elementwise, if a tensor absorbs it.
    """

    category: str
    name: str
    amount: float
    relevance: Tensor | None = None


Amounts = Iterator[Amount]


@dataclass(frozen=True)
class Case:
    """One node of a sweep, with its decision and its specification."""

    plan: Plan
    account: Account

    @property
    def decision(self) -> Decision:
        """The plan's decision."""
        return self.plan.decisions[self.account.node]

    @property
    def spec(self) -> OpSpec:
        """The operator's row in the op table."""
        return self.plan.facts.specs[self.account.node]

    @property
    def op(self) -> str:
        """The operator's name, for amounts that belong to no tensor."""
        return str(self.account.node.target)

    @property
    def cotangent(self) -> Tensor:
        """Cotangent of the first output."""
        return self.account.outputs[0][1]


def book(plan: Plan, account: Account) -> Amounts:
    """Amounts absorbed at one node, by the form of its rule; a registered rule's gain or loss comes first."""
    case = Case(plan, account)
    decision = case.decision
    if decision.rule.custom and len(account.outputs) == 1:
        (y, g) = account.outputs[0]
        changed = custom_backward(decision.rule.custom)(g, y, **decision.rule.parameters)
        yield Amount("rule", decision.rule.custom, safe_dot(y, g) - safe_dot(y, changed))
        case = Case(plan, replace(account, outputs=[(y, changed)]))
    yield from BOOK[decision.form(account.node, case.spec)](case)


def _plain(case: Case) -> Amounts:
    """Addends: biases, constants, literals."""
    yield from _constants(case, 1.0)


def _scaled(case: Case) -> Amounts:
    """The part of a product that its factors do not pass on, and addends."""
    yield from _undivided(case)
    yield from _constants(case, 1.0)


def _undivided(case: Case) -> Amounts:
    if case.spec.kind not in ("product", "quotient", "homogeneous"):
        return
    lost = 1 - _fraction(case)
    if abs(lost) > 1e-12:
        added = [s for s in declared(case.account.node, case.spec) if s.name in case.spec.terms]
        rest = case.account.arrived - sum(natural(case.account, added).values())
        yield Amount("rule", case.op, lost * rest)


def _stabilised(case: Case) -> Amounts:
    """The part absorbed by the divisor y + epsilon sign y, and addends."""
    yield from _undivided(case)
    passed: Tensor | float = 1.0
    if epsilon := case.decision.rule.get("epsilon"):
        (y, g) = case.account.outputs[0]
        yield Amount("stabiliser", case.op, safe_dot(y - y * y / stabilised(y, epsilon), g))
        passed = y / stabilised(y, epsilon)
    yield from _constants(case, passed)


def _natural(case: Case) -> Amounts:
    """Relevance that the natural gradient does not pass on, and addends."""
    terms = [Slot(name) for name in case.spec.terms]
    lost = _left(case, terms)
    if abs(lost) > 1e-12 * case.account.magnitude:
        yield Amount("rule", case.op, lost)
    if terms:
        yield from _constants(case, 1.0)


def _remainder(case: Case) -> Amounts:
    """The remainder of a first-order Taylor expansion."""
    yield Amount(case.decision.entry.books[0], case.op, _left(case))


def _slope(case: Case) -> Amounts:
    """The part absorbed where x is near 0 and f(x)/x is replaced; none for a slope in closed form."""
    if case.spec.slope is not None:
        return
    y, x, slope = (t.detach() for t in case.account.post[:3])
    singular = x.abs() < singular_radius(x.dtype)  # elsewhere the slope is f(x)/x up to rounding
    lost = torch.where(singular, y - relevance_of(x, slope), 0.0)
    yield Amount("stabiliser", case.op, safe_dot(lost, case.cotangent))


def _centred(case: Case) -> Amounts:
    """The constant f(0) of y = f(x); if f(0) is unknown, infinite or 0, the loss of the slope f(x)/x near 0."""
    origin = None if case.spec.slope is not None else at_zero(case.account.node, case.spec)
    if origin is None or not has_offset(origin):
        yield from _slope(case)
        return
    y, x, slope = (t.detach() for t in case.account.post[:3])
    yield Amount("constant", case.op, safe_dot(y - relevance_of(x, slope), case.cotangent))


def _rectified(case: Case) -> Amounts:
    """Negative cotangents that are cut off, and the part of the rest that the gradient does not conserve."""
    account, decision = case.account, case.decision
    cut = replace(account, outputs=[(y, g.clamp(min=0)) for y, g in account.outputs])
    if decision.entry.natural or len(decision.live) > 1:
        passed = sum(natural(cut, list(decision.live)).values())
    else:
        (slot,) = decision.live
        x = value_of(account, slot)
        passed = 0.0 if x is None else safe_dot(x, cut.outputs[0][1])
    yield Amount("rule", case.op, account.arrived - passed)


def _distributed(case: Case) -> Amounts:
    """The term of constants alone, if every factor has a constant; all other terms pass relevance to their signals."""
    constant = 1.0
    for term in case.decision.terms:
        shift = term.leaf.shift
        if term.weighs or shift is None or shift.number is None:
            return
        constant *= shift.number
    yield Amount("constant", case.op, safe_dot(torch.full_like(case.cotangent, constant), case.cotangent))


def _solved(case: Case) -> Amounts:
    """Constant part of C^-1 B if B is a constant: it does not depend on the signal in the matrix."""
    system = case.decision.system
    assert system is not None
    if system.right in case.decision.live:
        return
    matrix = value_of(case.account, system.matrix)
    assert matrix is not None
    name, category = case.op, "constant"
    right = None if system.right is None else value_of(case.account, system.right)
    if system.right is not None:
        name, category = constant_name(case.plan, all_slots(case.account.node)[system.right])
    added = without_triangle(matrix, right, system.left, system.unit, system.vector)
    yield Amount(category, name, safe_dot(added.expand_as(case.cotangent), case.cotangent))


def _counted(case: Case) -> Amounts:
    """Outputs of a product along a dimension that have no live factor: they belong to the constant operand."""
    constant = [n for s, n in declared(case.account.node, case.spec).items() if s not in case.decision.live]
    if constant and len(case.account.post) == 3:
        y, _, share = (plain(t) for t in case.account.post)
        whole = relevance_of(y, torch.where(share == 0, case.cotangent, 0.0))
        name, category = constant_name(case.plan, constant[0])
        yield Amount(category, name, float(whole.double().sum()))
    yield from _constants(case, 1.0)


def _divided(case: Case) -> Amounts:
    """Relevance divided among runs: the shares of the runs' biases, and the part absorbed by the divisors."""
    account = case.account
    y, g = account.outputs[0]
    handed = [shared(y, g, *(plain(a) for a in args[1:])) for args in account.shares]
    bias = 0.0
    for run in account.runs:
        args, kwargs = pytree.tree_map(plain, (run.args, run.kwargs))
        bias += run.sign * safe_dot(_offset(case, run, args, kwargs), handed[run.share])
    yield Amount("bias", case.op, bias)
    passed = sum(safe_dot(plain(args[1]), s) for args, s in zip(account.shares, handed, strict=True))
    yield Amount("stabiliser", case.op, account.arrived - passed)


def _favoured(case: Case) -> Amounts:
    """The generalised gamma rule: the biases' shares in z and in a, and the part absorbed by the divisor."""
    account, rule = case.account, case.decision.rule
    g = case.cotangent
    z, total, a = (plain(t) for t in account.post[:3])
    of_z, of_a = favoured(z, a, g, rule.get("gamma"), rule.get("epsilon"))
    yield Amount("stabiliser", case.op, account.arrived - safe_dot(total, of_z) - safe_dot(a, of_a))
    bias = 0.0
    for run in account.runs:
        args, kwargs = pytree.tree_map(plain, (run.args, run.kwargs))
        bias += safe_dot(_offset(case, run, args, kwargs), (of_z, of_a)[run.share])
    yield Amount("bias", case.op, bias)
    if all(run.share for run in account.runs):  # z is the layer's own output
        yield from _constants(case, torch.where(g == 0, 0.0, of_z / g))


def _summed(case: Case) -> Amounts:
    """The generalised gamma rule on a sum: shares of constant addends, and the part absorbed by the divisor."""
    account, rule = case.account, case.decision.rule
    z, _, a = (plain(t) for t in account.post[:3])
    of_z, of_a = favoured(z, a, case.cotangent, rule.get("gamma"), rule.get("epsilon"))
    yield Amount("stabiliser", case.op, account.arrived - safe_dot(z, of_z) - safe_dot(a, of_a))
    for slot, weight in addends(account.node, case.spec).items():
        added = value_of(account, slot)
        if slot not in case.decision.live and added is not None:
            name, category = constant_name(case.plan, declared(account.node, case.spec)[slot])
            part = weight * added
            yield Amount(category, name, safe_dot(part, of_z) + safe_dot(part.abs(), of_a))


def _offset(case: Case, run: LayerRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Output of a layer for an input of zeros: its bias, without addends that carry relevance themselves."""
    names = [*bind(run.node)]
    bound = dict(zip(positional(run.node, names), args, strict=False)) | kwargs
    at, position = run.input
    zero = torch.zeros_like(bound[at] if position is None else bound[at][position])
    bound[at] = zero if position is None else [zero if i == position else v for i, v in enumerate(bound[at])]
    facts = case.plan.facts
    layer = facts.folded.get(case.account.node, case.account.node)
    for slot in facts.layers[layer].biases if layer in facts.layers else ():  # a window of a maximum is no layer
        if slot in facts.operands[layer]:
            bound[slot.name] = torch.zeros_like(bound[slot.name])
    schema = getattr(run.node.target, "_schema", None)
    only = {a.name for a in schema.arguments if a.kwarg_only} if schema is not None else set()
    first = [bound[n] for n in positional(run.node, names)[: len(args)]]
    return run.node.target(*first, **{k: v for k, v in bound.items() if k in kwargs or k in only})  # type: ignore[operator]


def _left(case: Case, further: list[Slot] | None = None) -> float:
    """Relevance that the natural gradient, times the factors of the rule, does not pass on.

    Args:
        case: the node.
        further: operands with relevance besides the live ones.
    """
    decision = case.decision
    amounts = natural(case.account, list(dict.fromkeys([*decision.live, *(further or [])])))
    return case.account.arrived - sum(decision.factors.get(slot, 1.0) * amount for slot, amount in amounts.items())


def _fraction(case: Case) -> float:
    """Fraction of relevance that the operands of a (multi)homogeneous node receive: sum of degree times factor."""
    plan, decision, account, spec = case.plan, case.decision, case.account, case.spec
    factors = {slot: decision.factors.get(slot, 1.0) for slot in decision.live if slot.name in spec.args}
    if spec.kind == "homogeneous":
        return sum(f * degree(account.node, spec) for f in factors.values())
    if not factors:  # only an added term is live
        return 1.0
    return sum(-f if is_denominator(plan.facts, account.node, slot) else f for slot, f in factors.items())


def _attention(case: Case) -> Amounts:
    """Half of the relevance goes to the scores; softmax absorbs the part that queries, keys and mask do not receive."""
    plan, decision, account = case.plan, case.decision, case.account
    share = decision.softmax_share
    slots = [s for s in decision.live if s.name in ("query", "key") and decision.factors.get(s, 1.0) != 0]
    excess = _fraction_uniform(decision)
    if not share:
        return
    mask = Slot("attn_mask")
    mask_value = value_of(account, mask)
    added = (
        [mask] if mask_value is not None and mask_value.is_floating_point() else []
    )  # a boolean mask selects, it is not added
    amounts = natural(account, [*slots[:1], *added])
    scores = sum(v for s, v in amounts.items() if s != mask)
    constant = amounts.get(mask, 0.0) if mask not in decision.live else 0.0
    if constant:
        name, category = constant_name(plan, declared(account.node, plan.facts.specs[account.node])[mask])
        yield Amount(category, name, share * constant)
    yield Amount("softmax", case.op, share * (account.arrived - scores - amounts.get(mask, 0.0)))
    if excess:
        yield Amount("rule", case.op, excess * account.arrived + _excess(decision, share, scores))


def _fraction_uniform(decision: Decision) -> float:
    """Relevance that values and scores together leave over, as a fraction (0 under the uniform rule)."""
    values = sum(decision.factors.get(s, 1.0) for s in decision.live if s.name == "value")
    return 1 - values - decision.softmax_share


def _excess(decision: Decision, share: float, scores: float) -> float:
    pair = [decision.factors.get(s, 1.0) for s in decision.live if s.name in ("query", "key")]
    return (share - sum(pair)) * scores if pair else 0.0


def _constants(case: Case, passed: Tensor | float) -> Amounts:
    """Additive constants of an affine node, each as constant times cotangent; then literals."""
    plan, decision, account, spec = case.plan, case.decision, case.account, case.spec
    additive = spec.args + spec.terms if spec.kind in ("linear", "movement") else spec.terms
    if spec.kind == "selection":
        additive = spec.args
    operands = {s: n for s, n in declared(account.node, spec).items() if s.name in additive}
    constant = [s for s in operands if s not in decision.live]
    for slot, (x, g) in gradients(account, constant, passed).items():
        name, category = constant_name(plan, operands[slot])
        yield Amount(category, name, safe_dot(x, g), relevance_of(x, g))
    others = {slot: n for slot, n in all_slots(account.node).items() if slot not in declared(account.node, spec)}
    hidden = spec.kind == "linear" and any(
        is_float(n) for n in others.values()
    )  # running statistics, undeclared biases
    if hidden or (spec.kind in ("linear", "movement") and adds_a_number(account.node, spec)):
        zeros = {s: torch.zeros_like(v) for s in operands if (v := value_of(account, s)) is not None}
        offset = call(account, zeros)
        if isinstance(offset, Tensor):
            g = case.cotangent * passed
            yield Amount("bias" if hidden else "constant", case.op, safe_dot(offset, g))


def constant_name(plan: Plan, node: Node) -> tuple[str, str]:
    """(name, category) of a tensor that carries no relevance, named by the parameters it depends on."""
    if node in plan.stopped or node in plan.facts.operands:
        return node.name, "stopped"
    names, sizes, detached = [], [], set(plan.facts.detached)

    def constants(node: Node) -> list[Node]:
        return [n for n in node.all_input_nodes if n.op == "get_attr" or is_float(n)]

    for current in upstream([node], constants):
        if current in detached:
            return node.name, "detached"
        val = current.meta.get("val")
        if current.op == "get_attr" and not (isinstance(val, Tensor) and not val.is_floating_point()):
            names.append(str(current.target))
            sizes.append(sum(int(d) > 1 for d in val.shape) if isinstance(val, Tensor) else 0)
    if not names:
        return node.name, "constant"
    return "+".join(dict.fromkeys(names)), "bias" if max(sizes) <= 1 and node.op == "get_attr" else "source"


#: form of the rule table -> the function that books its absorbed relevance
BOOK: dict[table.Form, Callable[[Case], Amounts]] = {
    table.PLAIN: _plain,
    table.SCALED: _scaled,
    table.STABILISED: _stabilised,
    table.NATURAL: _natural,
    table.REMAINDER: _remainder,
    table.SLOPE: _slope,
    table.CENTRED: _centred,
    table.STATISTIC: _plain,
    table.DISTRIBUTED: _distributed,
    table.SOLVED: _solved,
    table.COUNTED: _counted,
    table.RECTIFIED: _rectified,
    table.RUNS: _divided,
    table.FAVOURED: _favoured,
    table.SUMMED: _summed,
    table.WINDOWS: _divided,
    table.ATTENTION: _attention,
}
