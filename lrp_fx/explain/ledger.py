"""The ledger: where all relevance went. Every entry is computed on its own, and together they are the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import Node

from lrp_fx.explain.accounts import Account, Sweep, safe_dot
from lrp_fx.explain.bookings import book
from lrp_fx.graph.location import module_path
from lrp_fx.plan import Plan
from lrp_fx.rules.functions import nonzero, relevance_of


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
    x = nonzero(x) if plan.feeds_zeros else x
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
        for category, name, amount, relevance in book(plan, account)
        if amount != 0.0
    ]
