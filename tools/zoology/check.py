"""The check of a row of the zoo: equal outputs, conservation from outside, conservation at every node."""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, TypeVar

from case import Built, NotBuildable
from torch import nn

from lrp_fx.errors import LrpError
from lrp_fx.testing import measure
from lrp_fx.testing.measure import CONSERVATION, fails, measure_outputs, measure_sums, projection, short, shortcomings
from lrp_fx.testing.result import Measured

__all__ = ["CONSERVATION", "Row", "check", "fails", "in_float64", "judged", "projection", "short"]

Rules = str | Mapping[str, Any]


@dataclass
class Row:
    """One row of the report; ``reason`` is empty for the verdict "pass".

    Attributes:
        route: how it was captured.
        forward: largest difference to the model's outputs in float32, relative to the largest output.
        conservation: |target - inputs - sources - literals| / |target| under cp_lrp in float64, with biases at 0.
            Sources are positions, class tokens and the like; literals are numbers in the code that are added.
        literals: share of literals in the target.
        role_defect: largest defect at one node under attnlrp.
        note: deviation from the usual check.
        silent: inputs that can carry relevance and got none.
    """

    verdict: str
    reason: str = ""
    route: str = ""
    nodes: int = 0
    capture_seconds: float = 0.0
    forward: float | None = None
    conservation: float | None = None
    literals: float | None = None
    role_defect: float | None = None
    roles: dict[str, int] = field(default_factory=dict)
    note: str = ""
    silent: list[str] = field(default_factory=list)
    specialised: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_Row = TypeVar("_Row", bound="Judged")


class Judged(Protocol):
    """Common fields of all kinds of rows."""

    verdict: str
    reason: str
    seconds: float


def check(build: Callable[[], Built], rules: Rules = "cp_lrp", ops: Mapping[str, Any] | None = None) -> Row:
    """Build a model and check it."""
    return judged(build, Row, functools.partial(_check, rules=rules, ops=ops))


def judged(build: Callable[[], Built], kind: Callable[[str, str], _Row], run: Callable[[Built, _Row], None]) -> _Row:
    """Build a model and fill its row by ``run``; an error becomes the row's reason."""
    start, row = time.perf_counter(), kind("fail", "")
    try:
        built = build()
    except NotBuildable as error:
        return kind("not buildable", str(error))
    except Exception as error:
        return kind("not buildable", short(error))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(built, row)
    except LrpError as error:
        row.reason = short(error, 300)
    except Exception as error:
        row.reason = "UNNAMED " + short(error, 300)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _check(built: Built, row: Row, rules: Rules, ops: Mapping[str, Any] | None) -> None:
    measured, inputs = Measured(), (built.model, built.args, built.inputs)
    try:
        measure_outputs(measured, *inputs, ops=ops)
        measure_sums(
            measured, *inputs, target=built.target, rules="attnlrp", outside=rules, ops=ops, disposable=True
        )  # fmt: skip
    finally:
        for name in {f.name for f in fields(measured)} & {f.name for f in fields(row)}:
            setattr(row, name, getattr(measured, name))
    row.reason = "; ".join(text for _, text in shortcomings(measured))
    row.verdict = "fail" if row.reason else "pass"


def in_float64(built: Built) -> tuple[nn.Module, Any, Any, float, str]:
    """(model, arguments, keywords, tolerance, note): in float32, with a note, if the model itself fails in float64."""
    return measure.in_float64(built.model, built.args, built.inputs, disposable=True)
