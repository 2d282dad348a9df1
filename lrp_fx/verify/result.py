"""The result of a verification."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from lrp_fx.results import Ledger


@dataclass(frozen=True)
class RoleCheck:
    """Conservation over all nodes of one role.

    Attributes:
        role: the role.
        nodes: their number.
        absorbed: sum of the relevance that their rules absorb (biases, softmax, stabilisers).
        defect: largest |arrived - passed on - absorbed| at one node, relative to the largest magnitude in the sweep.
        worst: location of that node.
    """

    role: str
    nodes: int
    absorbed: float
    defect: float
    worst: str


@dataclass(frozen=True)
class Verification:
    """Result of ``verify``; it prints as a table.

    Attributes:
        forward_difference: largest absolute difference to the model's outputs.
        bit_equal: whether all outputs are equal bit by bit.
        roles: conservation by role.
        balance: residual of the ledger, relative.
        finite: whether every cotangent is finite.
        failures: one line for each failed check, naming the node.
        notes: further observations (random draws, gradients that the model stops).
        tolerance: the tolerance of outputs, defects and balance.
        gradient_difference: largest difference of ``rules="gradient"`` to plain autograd, relative to each map; None
            if the graph could not be differentiated.
        ledger: the ledger of the sweep.
    """

    forward_difference: float
    bit_equal: bool
    roles: tuple[RoleCheck, ...]
    balance: float
    finite: bool
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    tolerance: float
    gradient_difference: float | None
    ledger: Ledger

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

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
        apart = "none to compare" if self.gradient_difference is None else f"{self.gradient_difference:.2e}"
        table.add_row("gradient", "", "", apart, "")
        table.add_row("finite", "", "", "yes" if self.finite else "NO", "")
        return table

    def print(self, console: Console | None = None) -> None:
        """Print the table, then every failure and note."""
        console = console or Console()
        console.print(self.table())
        for line in self.failures:
            console.print(f"  {line}", highlight=False, markup=False)
        for line in self.notes:
            console.print(f"  note: {line}", highlight=False, markup=False)

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=160))
        return text.getvalue().rstrip()

    __repr__ = __str__
