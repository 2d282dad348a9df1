"""The ledger of a sweep: every entry computed on its own, none as a difference of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.explain.account import Account, safe_dot
from lrp_fx.explain.accounts import Sweep
from lrp_fx.explain.bookings import book
from lrp_fx.graph.location import module_path
from lrp_fx.plan import Plan
from lrp_fx.results.ledger import Entry, Ledger
from lrp_fx.rules.functions import nonzero, relevance_of


@torch.inference_mode(False)  # operators are run again for their gradients
def make_ledger(
    plan: Plan,
    sweep: Sweep,
    owned: Mapping[Node, float] | None = None,
    stays: Mapping[Node, list[Entry]] | None = None,
) -> Ledger:
    """The ledger of a sweep.

    Args:
        plan: the plan.
        sweep: its accounting sweep.
        owned: source -> relevance that belongs to an input; the rest belongs to rows that the model looks up by itself
            (padding to a window, a start token).
        stays: node -> its absorbed entries (:func:`all_absorbed`), if already computed.
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


@torch.inference_mode(False)
def all_absorbed(plan: Plan, sweep: Sweep) -> dict[Node, list[Entry]]:
    """Entries absorbed at every node that relevance reached, in graph order."""
    return {node: absorbed(plan, account) for node, account in sweep.accounts.items() if account.outputs}


def absorbed(plan: Plan, account: Account) -> list[Entry]:
    """Entries absorbed at one node: biases and other constants, softmax, stabilisers, non-conserving rules."""
    decision, node = plan.decisions[account.node], account.node
    base = {"role": decision.role, "module": module_path(node), "node": node.name}
    return [
        Entry(category, name, amount=amount, relevance=relevance, **base)
        for category, name, amount, relevance in book(plan, account)
        if amount != 0.0
    ]
