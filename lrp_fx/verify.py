"""Verification: the model's own outputs, conservation at every node, finiteness, on the user's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call, opened
from lrp_fx.capture.containers import closed
from lrp_fx.capture.conventions import preserved, traceable
from lrp_fx.errors import locate
from lrp_fx.explain import Ledger, Sweeper, Target
from lrp_fx.explain.ledger import absorbed, make_ledger
from lrp_fx.explain.target import padding_masks, select


@dataclass(frozen=True)
class RoleCheck:
    """Conservation over all nodes of one role.

    Attributes:
        role: the role.
        nodes: how many.
        absorbed: relevance that stays there by the rule (biases, softmax, stabilisers), summed.
        defect: largest |arrived - passed on - absorbed| at one node, relative to the largest magnitude in the sweep.
        worst: where that is.
    """

    role: str
    nodes: int
    absorbed: float
    defect: float
    worst: str


@dataclass(frozen=True)
class Verification:
    """Result of ``verify``.

    Attributes:
        forward_difference: largest absolute difference to the model's own outputs.
        bit_equal: whether there is none.
        roles: conservation by role.
        balance: residual of the ledger, relative.
        finite: whether every cotangent is finite.
        failures: one line per node whose defect exceeds the tolerance.
        tolerance: the tolerance on defects and balance.
    """

    forward_difference: float
    bit_equal: bool
    roles: tuple[RoleCheck, ...]
    balance: float
    finite: bool
    failures: tuple[str, ...]
    tolerance: float
    ledger: Ledger

    @property
    def passed(self) -> bool:
        """No defect, a balanced ledger, finite everywhere."""
        return not self.failures and self.finite and self.balance <= self.tolerance

    def table(self) -> Table:
        """As a rich table."""
        table = Table(title=f"verify: {'passed' if self.passed else 'FAILED'}")
        for column in ("check", "nodes", "absorbed", "defect", "worst at"):
            table.add_column(column)
        table.add_row("forward", "", "", f"{self.forward_difference:.2e}", "bit-equal" if self.bit_equal else "")
        for r in self.roles:
            table.add_row(
                r.role,
                str(r.nodes),
                f"{r.absorbed:.4g}",
                f"{r.defect:.2e}",
                r.worst if r.defect > self.tolerance else "",
            )
        table.add_row(
            "ledger", "", f"{self.ledger.total:.6g}", f"{self.balance:.2e}", f"target {self.ledger.target:.6g}"
        )
        table.add_row("finite", "", "", "yes" if self.finite else "NO", "")
        return table

    def print(self) -> None:
        """Print the table, then every failing node."""
        console = Console()
        console.print(self.table())
        for line in self.failures:
            console.print(f"  {line}", highlight=False)


def verify(
    model: torch.nn.Module, sweeper: Sweeper, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target
) -> Verification:
    """Run the model and an accounting sweep, and compare.

    The tolerance follows the precision: 1e-9 in float64, 1e-4 in float32, 5e-2 below.
    """
    masks = padding_masks(call.tensors)
    sweep = sweeper.account(call.leaves, lambda output: select(output, target, masks, sweeper.reading))
    difference, equal = _forward(model, sweeper, args, kwargs)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(sweep.target.dtype, 5e-2)
    plan = sweeper.rewritten.plan
    accounts = [a for a in sweep.accounts.values() if a.outputs]
    scale = max([a.magnitude for a in accounts] + [1e-300])
    kept: dict[str, float] = {}
    worst: dict[str, tuple[float, Node]] = {}
    counts: dict[str, int] = {}
    failures = []
    finite = True
    for account in accounts:
        role = plan.decisions[account.node].role
        stays = sum(entry.amount for entry in absorbed(plan, account))
        defect = abs(account.arrived - account.passed - stays) / scale
        finite &= all(bool(g.isfinite().all()) for _, g in account.outputs)
        kept[role] = kept.get(role, 0.0) + stays
        counts[role] = counts.get(role, 0) + 1
        if role not in worst or not defect <= worst[role][0]:
            worst[role] = (defect, account.node)
        if not defect <= tolerance:
            failures.append(f"{role}: defect {defect:.2e} at {locate(account.node)}")
    ledger = make_ledger(plan, sweep)
    roles = tuple(
        RoleCheck(role, counts[role], kept[role], worst[role][0], locate(worst[role][1])) for role in sorted(counts)
    )
    return Verification(difference, equal, roles, ledger.balance, finite, tuple(failures), tolerance, ledger)


def _forward(
    model: torch.nn.Module, sweeper: Sweeper, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[float, bool]:
    """Largest difference between the rewritten graph and the model in evaluation mode, without caches."""
    args, kwargs = opened((args, kwargs))
    with torch.no_grad():
        with preserved(model), traceable(model, experts=None):
            expected = [t for t in pytree.tree_leaves(model(*closed(args), **closed(kwargs))) if isinstance(t, Tensor)]
        found = [
            t for t in pytree.tree_leaves(sweeper.rewritten.graph_module(*args, **kwargs)) if isinstance(t, Tensor)
        ]
    if len(expected) != len(found):
        return float("inf"), False
    pairs = list(zip(expected, found, strict=True))
    equal = all(torch.equal(a, b) for a, b in pairs)
    return max([float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()] + [0.0]), equal
