"""The result of a check: measurements and failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch.utils import _pytree as pytree

from lrp_fx.graph.location import Place, located


@dataclass(frozen=True)
class Failure:
    """One failure.

    Attributes:
        kind: "model" (the model itself does not run), "error" (conversion or explanation raised one), "outputs",
            "relevance" (no input gets any), "conservation", or "verify" (a line of :meth:`ExplainableModule.verify`).
        text: the observation and its place.
        place: node, module path and source line; empty for a failure without a single place.
    """

    kind: str
    text: str
    place: Place = field(default_factory=Place)

    @classmethod
    def told(cls, kind: str, text: str) -> Failure:
        """A failure, with the place named in its text."""
        return cls(kind, text, located(text))

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class Measured:
    """Measurements of a model, up to a failure.

    Attributes:
        route: how it was captured: "export" or "trace".
        nodes: number of nodes of the captured graph.
        capture_seconds: duration of the capture.
        roles: number of nodes by role.
        specialised: specialized input dimensions, with reasons.
        forward: largest difference to the model's outputs in its precision, relative to the largest output.
        role_defect: largest conservation defect at one node, relative to the largest magnitude in the sweep.
        conservation: |target - inputs - sources - literals| / |target| with biases at 0 and constant attention weights,
            where nothing else may absorb relevance. Sources are positions, class tokens and the like; literals are
            numbers in the code that are added. It does not depend on the ledger's entry of biases.
        literals: share of literals in the target.
        silent: inputs that can carry relevance and got none.
        inputs: number of inputs that can carry relevance.
        amounts: the ledger by category, with biases at 0.
        tolerance: tolerance of ``conservation`` and ``role_defect``.
        note: deviation from the usual check.
    """

    route: str = ""
    nodes: int = 0
    capture_seconds: float = 0.0
    roles: dict[str, int] = field(default_factory=dict)
    specialised: list[str] = field(default_factory=list)
    forward: float | None = None
    role_defect: float | None = None
    conservation: float | None = None
    literals: float | None = None
    silent: list[str] = field(default_factory=list)
    inputs: int = 0
    amounts: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    note: str = ""


_COLUMNS = {
    "forward": "outputs apart",
    "role_defect": "largest defect at a node",
    "conservation": "conservation, biases at 0",
}


@dataclass(frozen=True)
class Check:
    """The result of :func:`lrp_fx.testing.check`; it prints as :meth:`to_markdown`.

    Attributes:
        model: name of the model's class.
        rules: name of the rule set.
        failures: all failures.
        notes: further observations.
        seconds: duration of the check.
        measured: the measurements.
    """

    model: str
    rules: str
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    seconds: float
    measured: Measured

    @property
    def passed(self) -> bool:
        """Whether there is no failure."""
        return not self.failures

    def assert_passed(self) -> Self:
        """Return the result if it passed.

        Raises:
            AssertionError: with every failure, naming node, module path and source line.
        """
        __tracebackhide__ = True  # pytest: the test's own line
        if not self.passed:
            lines = "\n".join(f"  {failure}" for failure in self.failures)
            raise AssertionError(f"explanations of {self.model} under {self.rules} do not hold:\n{lines}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; numbers that are not finite, which JSON lacks, as text."""
        return {"passed": self.passed, **pytree.tree_map_only(float, _number, asdict(self))}

    def to_markdown(self) -> str:
        """As a section of a page: the verdict, numbers, failures and notes."""
        measured = self.measured
        rows = [("rules", self.rules), ("captured by", measured.route), ("nodes", str(measured.nodes))]
        numbers = [(name, getattr(measured, column)) for column, name in _COLUMNS.items()]
        rows += [(name, f"{number:.1e}") for name, number in numbers if number is not None]
        rows += [("roles", ", ".join(f"{role} {count}" for role, count in sorted(measured.roles.items())))]
        rows += [("seconds", f"{self.seconds:.1f}")]
        lines = [f"### {self.model}: {'passed' if self.passed else 'failed'}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in rows if value]
        for heading, items in (("Failures", self.failures), ("Notes", self.notes)):
            lines += ["", f"{heading}:", "", *(f"- {_line(item)}" for item in items)] if items else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_markdown()


def _number(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: object) -> str:
    return " ".join(str(text).split())
