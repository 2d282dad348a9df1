"""The ledger: where all relevance went. Every entry is computed on its own, and together they are the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.explain.accounts import Account, LayerRun, Sweep, safe_dot
from lrp_fx.explain.rerun import call, gradients, natural, plain, positional, value_of
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import Slot, all_slots, declared, is_float
from lrp_fx.operators.table import bind
from lrp_fx.plan import Decision, Plan
from lrp_fx.plan.products import degree, is_denominator
from lrp_fx.rules.functions import nonzero, relevance_of, shared, stabilised
from lrp_fx.rules.ruleset import own_backward
from lrp_fx.rules.slopes import singular_radius


@dataclass(frozen=True)
class Entry:
    """One amount in the ledger.

    Attributes:
        category: input, source (position, type and latent parameters), position (rotary tables, where the rule set
            counts them), bias, constant, stopped, softmax, taylor (what the first-order expansion of another function
            of several numbers leaves out), stabiliser, rule (what a rule that does not conserve loses or invents) or
            target (a target that is not linear).
        name: input, parameter path, or operator.
        role: role of the node that absorbed it.
        module: module path of that node.
        node: its name.
        amount: relevance, summed over the batch.
        relevance: elementwise relevance, for sources.
    """

    category: str
    name: str
    role: str
    module: str
    node: str
    amount: float
    relevance: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Ledger(Mapping[str, float]):
    """All entries of one explanation, and the target they account for (both summed over the batch).

    As a mapping it gives the amount of each category; ``sum(ledger.values())`` is the target.
    """

    entries: tuple[Entry, ...]
    target: float

    @property
    def total(self) -> float:
        """Sum of all entries."""
        return sum(e.amount for e in self.entries)

    @property
    def residual(self) -> float:
        """Target minus total: 0 up to rounding, on any model, under any rule set."""
        return self.target - self.total

    @property
    def balance(self) -> float:
        """Residual relative to the sum of absolute entries (or the target, if larger)."""
        scale = max(abs(self.target), sum(abs(e.amount) for e in self.entries), 1e-300)
        return abs(self.residual) / scale

    def by(self, key: str) -> dict[str, float]:
        """Amounts grouped by an attribute of the entries: "category", "name", "role", "module"."""
        groups: dict[str, float] = {}
        for entry in self.entries:
            group = str(getattr(entry, key))
            groups[group] = groups.get(group, 0.0) + entry.amount
        return groups

    def __getitem__(self, category: str) -> float:
        return self.by("category").get(category, 0.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by("category"))

    def __len__(self) -> int:
        return len(self.by("category"))

    def __contains__(self, category: object) -> bool:
        return category in self.by("category")

    def __str__(self) -> str:
        rows = [f"{category:12} {amount: .6g}" for category, amount in self.by("category").items()]
        return "\n".join([*rows, f"{'total':12} {self.total: .6g}", f"{'target':12} {self.target: .6g}"])


def make_ledger(
    plan: Plan,
    sweep: Sweep,
    owned: Mapping[Node, float] | None = None,
    stays: Mapping[Node, list[Entry]] | None = None,
) -> Ledger:
    """Every entry of a sweep.

    Args:
        plan: the plan that was carried out.
        sweep: its accounting sweep.
        owned: what of each source's relevance belongs to an input; the rest belongs to rows that the model picks by
            itself (padding to a window, a start token).
        stays: what stays at each node (:func:`all_absorbed`), where that is known already.
    """
    entries = []
    for node, (x, g) in sweep.sources.items():
        entry = _source_entry(plan, node, x, g)
        rest = entry.amount - owned.get(node, entry.amount) if owned else 0.0
        if abs(rest) > 1e-12 * float(relevance_of(x, g).abs().sum()):
            entries.append(replace(entry, category="source", amount=rest, relevance=None))
            entry = replace(entry, amount=entry.amount - rest)
        entries.append(entry)
    for amounts in (all_absorbed(plan, sweep) if stays is None else stays).values():
        entries += amounts
    if sweep.target_defect:
        entries.append(Entry("target", "target function", "target", "", "", sweep.target_defect))
    return Ledger(tuple(entries), float(sweep.target.double().sum()))


def _source_entry(plan: Plan, node: Node, x: Tensor, g: Tensor) -> Entry:
    source = next(s for s in plan.sources if s.node is node)
    category = "position" if source in plan.positions else "input"
    x = nonzero(x) if plan.blind else x
    return Entry(category, source.name, "input", module_path(node), node.name, safe_dot(x, g), relevance_of(x, g))


def all_absorbed(plan: Plan, sweep: Sweep) -> dict[Node, list[Entry]]:
    """What stays at every node that relevance reached, in graph order."""
    return {node: absorbed(plan, account) for node, account in sweep.accounts.items() if account.outputs}


def absorbed(plan: Plan, account: Account) -> list[Entry]:
    """What stays at one node: biases and other constants, softmax, stabilisers, non-conserving rules."""
    decision, node = plan.decisions[account.node], account.node
    base = {"role": decision.role, "module": module_path(node), "node": node.name}
    return [
        Entry(category, name, amount=amount, relevance=relevance, **base)
        for category, name, amount, relevance in _absorbed(plan, decision, account)
        if amount != 0.0
    ]


Amounts = Iterator[tuple[str, str, float, Tensor | None]]


def _absorbed(plan: Plan, decision: Decision, account: Account) -> Amounts:
    spec, op = plan.facts.specs[account.node], str(account.node.target)
    rule = decision.rule.name
    if decision.rule.own and len(account.outputs) == 1:
        (y, g) = account.outputs[0]
        changed = own_backward(decision.rule.own)(g, y, **decision.rule.parameters)
        yield "rule", decision.rule.own, safe_dot(y, g) - safe_dot(y, changed), None
        account = replace(account, outputs=[(y, changed)])
    if decision.role == "attention":
        yield from _attention(plan, decision, account)
        return
    if decision.role == "softmax" or rule == "taylor":
        yield "softmax" if decision.role == "softmax" else "taylor", op, _left(account, decision), None
        return
    if rule in ("guided-backprop", "deconvnet"):
        yield "rule", op, account.arrived - _rectified(account, decision), None
        return
    several = isinstance(account.node.meta.get("val"), (tuple, list))  # outputs, not all of one degree
    if "count" in spec.extra or (several and spec.kind == "homogeneous"):
        lost = 0.0 if rule == "uniform" else _left(account, decision)
        if abs(lost) > 1e-12 * account.magnitude:
            yield "rule", op, lost, None
        if rule == "uniform":
            yield from _without_factors(plan, decision, account)
    elif spec.kind in ("product", "quotient", "homogeneous"):
        lost = 1 - _fraction(plan, decision, account)
        if abs(lost) > 1e-12:  # of the product; what is added to it keeps its own
            added = [s for s in declared(account.node, spec) if s.name in spec.terms]
            yield "rule", op, lost * (account.arrived - sum(natural(account, added).values())), None
    elif spec.kind in ("nonlinearity", "function") or (spec.kind == "linear" and decision.role == "nonlinearity"):
        if rule == "identity" and spec.slope is not None:
            return  # the slope is f(x)/x everywhere
        if rule == "identity":
            y, x, slope = (t.detach() for t in account.post[:3])
            lost = y - relevance_of(x, slope)
            held = x.abs() < singular_radius(x.dtype)  # elsewhere the slope is f(x)/x, and this is rounding
            yield "stabiliser", op, safe_dot(torch.where(held, lost, 0.0), _cotangent(account)), None
        else:
            yield "rule", op, _left(account, decision), None
        return
    elif spec.kind == "normalization" and rule == "gradient":
        lost = account.arrived - sum(natural(account, [Slot(n) for n in ("input", *spec.terms)]).values())
        yield "rule", op, lost, None
    if account.shares:
        yield from _shared(account, op)
        return
    kept: Tensor | float = 1.0
    epsilon = decision.rule.get("epsilon", 0.0) if rule == "epsilon" else 0.0
    if epsilon:
        (y, g) = account.outputs[0]
        yield "stabiliser", op, safe_dot(y - y * y / stabilised(y, epsilon), g), None
        kept = y / stabilised(y, epsilon)
    yield from _constants(plan, decision, account, kept)


def _without_factors(plan: Plan, decision: Decision, account: Account) -> Amounts:
    """Products along a dimension of no live factor: outputs that are the constant operand's."""
    spec = plan.facts.specs[account.node]
    constant = [n for s, n in declared(account.node, spec).items() if s not in decision.live]
    if constant and len(account.post) == 3:
        y, _, share = (plain(t) for t in account.post)
        kept = relevance_of(y, torch.where(share == 0, _cotangent(account), 0.0))
        name, category = constant_name(plan, constant[0])
        yield category, name, float(kept.double().sum()), None


def _left(account: Account, decision: Decision) -> float:
    """What the natural gradient, times the factors of the rule, leaves of the relevance that arrived."""
    amounts = natural(account, list(decision.live))
    return account.arrived - sum(decision.factors.get(slot, 1.0) * amount for slot, amount in amounts.items())


def _rectified(account: Account, decision: Decision) -> float:
    """What passes where negative cotangents are cut."""
    cut = replace(account, outputs=[(y, g.clamp(min=0)) for y, g in account.outputs])
    if decision.rule.name == "guided-backprop" or len(decision.live) > 1:
        return sum(natural(cut, list(decision.live)).values())
    (slot,) = decision.live
    x = value_of(account, slot)
    return 0.0 if x is None else safe_dot(x, _cotangent(cut))


def _shared(account: Account, op: str) -> Amounts:
    """Rules on parts: what the biases of the runs receive, and what the divisors keep."""
    y, g = account.outputs[0]
    handed = [shared(y, g, *(plain(a) for a in args[1:])) for args in account.shares]
    bias = 0.0
    for run in account.runs:
        args, kwargs = pytree.tree_map(plain, (run.args, run.kwargs))
        bias += run.sign * safe_dot(_offset(run, args, kwargs), handed[run.share])
    yield "bias", op, bias, None
    passed = sum(safe_dot(plain(args[1]), s) for args, s in zip(account.shares, handed, strict=True))
    yield "stabiliser", op, account.arrived - passed, None


def _offset(run: LayerRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer gives for an input of zeros: its bias."""
    names = [*bind(run.node)]
    bound = dict(zip(positional(run.node, names), args, strict=False)) | kwargs
    at, position = run.input
    zero = torch.zeros_like(bound[at] if position is None else bound[at][position])
    bound[at] = zero if position is None else [zero if i == position else v for i, v in enumerate(bound[at])]
    schema = getattr(run.node.target, "_schema", None)
    only = {a.name for a in schema.arguments if a.kwarg_only} if schema is not None else set()
    first = [bound[n] for n in positional(run.node, names)[: len(args)]]
    return run.node.target(*first, **{k: v for k, v in bound.items() if k in kwargs or k in only})  # type: ignore[operator]


def _cotangent(account: Account) -> Tensor:
    return account.outputs[0][1]


def _fraction(plan: Plan, decision: Decision, account: Account) -> float:
    """Share of what arrives that the operands of a (multi)homogeneous node receive: degree times factor, summed."""
    spec = plan.facts.specs[account.node]
    factors = {slot: decision.factors.get(slot, 1.0) for slot in decision.live if slot.name in spec.args}
    if spec.kind == "homogeneous":
        return sum(f * degree(account.node, spec) for f in factors.values())
    if not factors:  # only an added term is live
        return 1.0
    return sum(-f if is_denominator(plan.facts, account.node, slot) else f for slot, f in factors.items())


def _attention(plan: Plan, decision: Decision, account: Account) -> Amounts:
    """Half of what arrives goes to the scores; of that, what queries, keys and mask do not receive stays in softmax."""
    share = decision.softmax_share
    slots = [s for s in decision.live if s.name in ("query", "key") and decision.factors.get(s, 1.0) != 0]
    taken = _fraction_uniform(decision, account)
    if not share:
        return
    mask = Slot("attn_mask")
    given = value_of(account, mask)
    added = [mask] if given is not None and given.is_floating_point() else []  # a boolean mask selects, it is not added
    amounts = natural(account, [*slots[:1], *added])
    scores = sum(v for s, v in amounts.items() if s != mask)
    constant = amounts.get(mask, 0.0) if mask not in decision.live else 0.0
    if constant:
        name, category = constant_name(plan, declared(account.node, plan.facts.specs[account.node])[mask])
        yield category, name, share * constant, None
    yield "softmax", str(account.node.target), share * (account.arrived - scores - amounts.get(mask, 0.0)), None
    if taken:
        yield "rule", str(account.node.target), taken * account.arrived + _excess(decision, share, scores), None


def _fraction_uniform(decision: Decision, account: Account) -> float:
    """What values and scores together take beyond what arrives (0 under the uniform rule)."""
    values = sum(decision.factors.get(s, 1.0) for s in decision.live if s.name == "value")
    return 1 - values - decision.softmax_share


def _excess(decision: Decision, share: float, scores: float) -> float:
    pair = [decision.factors.get(s, 1.0) for s in decision.live if s.name in ("query", "key")]
    return (share - sum(pair)) * scores if pair else 0.0


def _constants(plan: Plan, decision: Decision, account: Account, kept: Tensor | float) -> Amounts:
    """Additive constants of an affine node: each as constant times its cotangent; then what literals add."""
    spec = plan.facts.specs[account.node]
    additive = spec.args + spec.terms if spec.kind in ("linear", "movement") else spec.terms
    if spec.kind == "selection":
        additive = spec.args
    operands = {s: n for s, n in declared(account.node, spec).items() if s.name in additive}
    constant = [s for s in operands if s not in decision.live]
    for slot, (x, g) in gradients(account, constant, kept).items():
        name, category = constant_name(plan, operands[slot])
        yield category, name, safe_dot(x, g), relevance_of(x, g)
    others = {slot: n for slot, n in all_slots(account.node).items() if slot not in declared(account.node, spec)}
    hidden = spec.kind == "linear" and any(
        is_float(n) for n in others.values()
    )  # running statistics, undeclared biases
    if hidden or (spec.kind in ("linear", "movement") and _has_literal(account.node)):
        zeros = {s: torch.zeros_like(v) for s in operands if (v := value_of(account, s)) is not None}
        offset = call(account, zeros)
        if isinstance(offset, Tensor):
            g = _cotangent(account) * kept
            yield "bias" if hidden else "constant", str(account.node.target), safe_dot(offset, g), None


def _has_literal(node: Node) -> bool:
    """Whether an affine operator can add a number of its own."""
    name = getattr(node.target, "_opname", "")
    adds = (
        "add",
        "sub",
        "rsub",
        "where",
        "masked_fill",
        "constant_pad_nd",
        "pad",
        "scatter",
        "nan_to_num",
        "index_fill",
    )
    return name in adds and any(isinstance(a, (int, float)) and a != 0 for a in node.args)


def constant_name(plan: Plan, node: Node) -> tuple[str, str]:
    """(name, category) of a tensor that carries no relevance: the parameters it is computed from."""
    if node in plan.stopped or node in plan.facts.operands:
        return node.name, "stopped"
    names, stack, seen = [], [node], set()
    sizes: list[int] = []
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        val = current.meta.get("val")
        if current.op == "get_attr" and not (isinstance(val, Tensor) and not val.is_floating_point()):
            names.append(str(current.target))
            sizes.append(sum(int(d) > 1 for d in val.shape) if isinstance(val, Tensor) else 0)
        stack += [n for n in current.all_input_nodes if n.op == "get_attr" or is_float(n)]
    if not names:
        return node.name, "constant"
    return "+".join(dict.fromkeys(names)), "bias" if max(sizes) <= 1 and node.op == "get_attr" else "source"
