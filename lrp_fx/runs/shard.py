"""The explanations of one shard's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrp_fx.errors import InputError, type_and_line
from lrp_fx.runs.batching import batches, padding_of
from lrp_fx.runs.columns import KINDS, shown
from lrp_fx.runs.data_files import BROKEN, Values
from lrp_fx.runs.explainer import Explainer, Prepared
from lrp_fx.runs.rows import Row
from lrp_fx.runs.shards import Counts


@dataclass(frozen=True)
class Task:
    """A shard to explain.

    Attributes:
        number: number of the shard.
        first: index of its first row in the data set.
        rows: its rows; only those columns that are explained.
    """

    number: int
    first: int
    rows: Sequence[Values]

    @classmethod
    def of(cls, number: int, size: int, rows: Sequence[Values], columns: Sequence[str]) -> Task:
        """The task of shard ``number``, of ``size`` rows, with the columns that are needed."""
        if number == 0 and rows and BROKEN not in rows[0]:
            check(rows[0], columns)  # an error in the very first row: the column name is wrong
        return cls(number, number * size, [{n: v for n, v in row.items() if n in (*columns, BROKEN)} for row in rows])


@dataclass(frozen=True)
class Shard:
    """The explanations of a shard.

    Attributes:
        number: number of the shard.
        first: index of its first row in the data set.
        inputs: the text or path of every row, in every column that is explained.
        rows: its rows of explanations.
        counts: their counts.
    """

    number: int
    first: int
    inputs: list[tuple[str | None, ...]]
    rows: list[Row]
    counts: Counts


def check(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Check that a row has all columns.

    Raises:
        InputError: for a missing column.
    """
    if missing := [name for name in columns if name not in row]:
        raise InputError(f"no column {missing[0]!r}: there are {', '.join(map(str, row))}")


def explain_shard(explainer: Explainer, task: Task) -> Shard:
    """Explain the rows of a shard, in batches of similar length."""
    columns = explainer.columns
    cells = [tuple(row.get(name) for name in columns) for row in task.rows]
    prepared: list[Prepared] = [Prepared(None, error=_error(row, columns)) for row in task.rows]
    intact = [i for i, one in enumerate(prepared) if one.error is None]
    values = [cells[i] if len(columns) > 1 else cells[i][0] for i in intact]
    for i, one in zip(intact, explainer.prepare(values), strict=True):
        prepared[i] = one
    rows: list[Row] = [{"error": one.error} for one in prepared]
    lengths = [one.length for one in prepared]
    readable = [i for i, one in enumerate(prepared) if one.error is None]
    counts = Counts()
    limits = KINDS[explainer.kind].limits
    if explainer.ledger:  # that of a row in a batch would be a sweep over the whole batch
        limits = replace(limits, rows=1)
    for batch in batches([lengths[i] for i in readable], limits):
        which = [readable[i] for i in batch]
        for i, row in zip(which, explainer.explain([prepared[i] for i in which]), strict=True):
            rows[i] = row
        padding, tokens = padding_of(which, lengths)
        counts += Counts(padding=padding, tokens=tokens)
    errors = Counter(row["error"] for row in rows if row["error"] is not None)
    counts += Counts(rows=len(rows), failures=errors.total(), errors=errors)
    return Shard(task.number, task.first, [tuple(map(shown, cell)) for cell in cells], rows, counts)


def _error(row: Values, columns: Sequence[str]) -> str | None:
    if BROKEN in row:
        return f"InputError: {row[BROKEN]}"
    try:
        check(row, columns)
    except InputError as error:
        return type_and_line(error)
    return None
