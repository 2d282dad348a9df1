"""Explain a data set, shard by shard; existing shards are not computed again."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrp_fx.errors import InputError, type_and_line
from lrp_fx.explain.target_types import normal, spoken
from lrp_fx.extras import require
from lrp_fx.results.fingerprint import model_fingerprint
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.runs.batching import batches, padding_of
from lrp_fx.runs.explainer import Explainer, Row
from lrp_fx.runs.reading import BROKEN, Values, described, read_rows
from lrp_fx.runs.shards import PRECISIONS, Counts, Folder
from lrp_fx.version import VERSION


@dataclass(frozen=True)
class Run:
    """Summary of a run.

    Attributes:
        out: the folder.
        counts: rows, failures and tokens of all shards.
        made: number of rows explained by this call, not by an earlier one.
        seconds: duration of this call.
    """

    out: Path
    counts: Counts
    made: int
    seconds: float

    @property
    def padding(self) -> float:
        """Share of padding in the model's inputs."""
        return self.counts.padding / self.counts.tokens if self.counts.tokens else 0.0

    @property
    def rate(self) -> float:
        """Rows per second of this call."""
        return self.made / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{counts.rows} rows in {self.out}, {counts.failures} failed; {self.made} explained now, in "
            f"{self.seconds:.1f} s ({self.rate:.1f} a second); {self.padding:.1%} of the model's inputs were padding"
        )


def run(
    model: Any,
    data: str | Path | Iterable[Any],
    *,
    out: str | Path,
    precision: str = "float32",
    rows_per_shard: int = 1024,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Explain every row of a data set, and write Parquet shards to a folder.

    Repeat a call that was killed: existing shards stay, and the missing ones are computed. The error of a row that
    fails is stored in the row. Rows are batched by length within a shard.

    Args:
        model: an :class:`Explainer`, or its first argument.
        data: a file (``.txt`` with a text per line, ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ``.arrow``), a folder
            of such files (a data set of Hugging Face that was saved to disk), a data frame, or an iterable of texts or
            rows, which must come in the same order when the call is repeated.
        out: the folder. ``manifest.json`` has the settings of the run and the meaning of the columns.
        precision: precision of relevance in the shards: "float32" or "float16".
        rows_per_shard: number of rows in a shard. A run that is killed loses the work on one shard at most.
        progress: show a progress bar on standard error.
        **options: of :class:`Explainer`, where ``model`` is none.

    Raises:
        InputError: for data that is not there, a folder of another run or one that another process writes to, and a
            column that is missing.
        MissingExtraError: when pyarrow is not installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if isinstance(model, Explainer) and options:
        raise ValueError(f"{', '.join(options)}: give them to Explainer(...)")
    require("pyarrow.parquet", "data")
    explainer = model if isinstance(model, Explainer) else Explainer(model, **options)
    texts = (explainer.text,) if isinstance(explainer.text, str) else explainer.text
    start, folder = time.perf_counter(), Folder(Path(out), precision, texts)
    with folder.locked():
        folder.begin(_settings(explainer, data, precision, rows_per_shard))
        total, made = Counts(), 0
        with _progress(progress) as bar:
            task = bar.add_task(
                "explaining", total=len(data) if isinstance(data, Sized) and not _is_path(data) else None
            )
            for number, rows in enumerate(_chunks(read_rows(data), rows_per_shard)):
                counts = folder.counts(number)
                if counts is None:
                    counts = _shard(explainer, folder, number, number * rows_per_shard, rows)
                    made += counts.rows
                total += counts
                bar.update(task, advance=counts.rows)
        result = Run(Path(out), total, made, time.perf_counter() - start)
        folder.finish({"rows": total.rows, "failures": total.failures, "padding": result.padding})
    return result


def _is_path(data: Any) -> bool:
    return isinstance(data, (str, Path))


def _shard(explainer: Explainer, folder: Folder, number: int, first: int, rows: list[Values]) -> Counts:
    texts: list[Any] = [None] * len(rows)
    explained: list[Row] = [{} for _ in rows]
    readable = []
    for i, row in enumerate(rows):
        if BROKEN in row:
            explained[i] = {"error": f"InputError: {row[BROKEN]}"}
            continue
        try:
            (texts[i],) = explainer.texts({name: [value] for name, value in row.items()})
            readable.append(i)
        except InputError as error:
            if first == i == 0:  # an error in the very first row: the column name is wrong
                raise
            explained[i] = {"error": type_and_line(error)}
    lengths = [explainer.length(text) for text in texts]
    counts = Counts()
    for batch in batches([lengths[i] for i in readable]):
        which = [readable[i] for i in batch]
        for i, row in zip(which, explainer.explain([texts[i] for i in which]), strict=True):
            explained[i] = row
        padding, tokens = padding_of(which, lengths)
        counts += Counts(padding=padding, tokens=tokens)
    counts += Counts(rows=len(rows), failures=sum(row["error"] is not None for row in explained))
    several = isinstance(explainer.text, tuple)
    shown = [(None, None) if several and text is None else text for text in texts]
    folder.write(number, first, shown, explained, counts)
    return counts


def _chunks(rows: Iterator[Values], size: int) -> Iterator[list[Values]]:
    if size < 1:
        raise InputError(f"rows_per_shard={size}: give at least 1")
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _settings(explainer: Explainer, data: Any, precision: str, rows_per_shard: int) -> dict[str, Any]:
    """The settings that must be equal for a run to be resumed."""
    rules = RuleSet.load(explainer.rules)
    return {
        "version": VERSION,
        "model": type(explainer.xmodel.model).__name__,
        "weights": model_fingerprint(explainer.xmodel.model),
        "rules": rules.name,
        "rules digest": hashlib.sha256(rules.key.encode()).hexdigest()[:16],
        "target": spoken(normal(explainer.target)),
        "text column": explainer.text,
        "ledger": explainer.ledger,
        "data": described(data),
        "precision": precision,
        "rows per shard": rows_per_shard,
    }


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True))
    more = (TextColumn("{task.completed:.0f} rows"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *more, console=Console(stderr=True), transient=True, disable=not shown)
