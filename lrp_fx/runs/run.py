"""Explain a data set, shard by shard; existing shards are not computed again."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrp_fx.errors import InputError
from lrp_fx.explain.target_types import normal, spoken
from lrp_fx.extras import require
from lrp_fx.results.weights_digest import model_fingerprint
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.runs.data_files import Values, described, kind_of_data, read_rows
from lrp_fx.runs.explainer import Explainer
from lrp_fx.runs.shard import Shard, Task, explain_shard
from lrp_fx.runs.shards import PRECISIONS, Counts, Folder
from lrp_fx.runs.workers import explain_by_workers
from lrp_fx.version import VERSION

_REASONS = 5  #: most errors that a report lists


@dataclass(frozen=True)
class Run:
    """Summary of a run.

    Attributes:
        out: the folder.
        counts: rows, failures, errors and tokens of all shards.
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

    def to_dict(self) -> dict[str, Any]:
        """The totals, as in the manifest."""
        counts = self.counts
        return {
            "rows": counts.rows, "failures": counts.failures, "errors": dict(counts.errors.most_common(_REASONS)),
            "padding": self.padding, "rows of the last call": self.made, "seconds of the last call": self.seconds,
        }  # fmt: skip

    def __str__(self) -> str:
        counts = self.counts
        lines = [
            f"{counts.rows} rows in {self.out}, {counts.failures} failed; {self.made} explained now, in "
            f"{self.seconds:.1f} s ({self.rate:.1f} a second); {self.padding:.1%} of the model's inputs were padding"
        ]
        lines += [f"  {number} x {error}" for error, number in counts.errors.most_common(_REASONS)]
        return "\n".join(lines)


def run(
    model: Any,
    data: str | Path | Iterable[Any],
    *,
    out: str | Path,
    precision: str = "float32",
    rows_per_shard: int = 2048,
    ray: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Explain every row of a data set, and write Parquet shards to a folder.

    Repeat a call that was killed: existing shards stay, and the missing ones are computed. The error of a row that
    fails is stored in the row. Rows are batched by length within a shard.

    Args:
        model: an :class:`Explainer`, or its first argument.
        data: a file (``.txt`` with a text per line, ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ``.arrow``), a folder
            of such files (a data set of Hugging Face that was saved to disk), a folder of images or of wav files, a
            data frame, or an iterable of values or rows, which must come in the same order when the call is repeated.
        out: the folder. ``_manifest.json`` has the settings of the run and the meaning of the columns.
        precision: precision of relevance in the shards: "float32" or "float16".
        rows_per_shard: number of rows in a shard. A run that is killed loses the work on one shard at most; a larger
            one has less padding.
        ray: address of a Ray cluster whose workers explain the shards, which this process writes; "local" starts one on
            this machine.
        workers: number of workers on the cluster; None for one for every two processors.
        progress: show a progress bar on standard error.
        **options: of :class:`Explainer`, where ``model`` is none.

    Raises:
        InputError: for data that is not there, a folder of another run or one that another process writes to, and a
            column that is missing.
        MissingExtraError: when pyarrow, or ray for a cluster, is not installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if isinstance(model, Explainer) and options:
        raise ValueError(f"{', '.join(options)}: give them to Explainer(...)")
    require("pyarrow.parquet", "data")
    if not isinstance(model, Explainer) and not {"text", "image", "sound"} & options.keys():
        kind = kind_of_data(data)
        options[kind] = kind
    explainer = model if isinstance(model, Explainer) else Explainer(model, **options)
    start, folder = time.perf_counter(), Folder(Path(out), precision, explainer.columns)
    with folder.locked():
        folder.begin(_settings(explainer, data, precision, rows_per_shard))
        with _progress(progress) as bar:
            total = len(data) if isinstance(data, Sized) and not isinstance(data, (str, Path)) else None
            count = _Count(bar, bar.add_task("explaining", total=total))
            tasks = _tasks(explainer, folder, read_rows(data, explainer.columns[0]), rows_per_shard, count)
            for shard in _explained(explainer, tasks, ray, workers):
                folder.write(shard.number, shard.first, shard.inputs, shard.rows, shard.counts)
                count.add(shard.counts, shard.counts.rows)
        result = Run(Path(out), count.counts, count.made, time.perf_counter() - start)
        folder.finish(result.to_dict())
    return result


@dataclass
class _Count:
    """Counts of the shards so far, and their progress bar."""

    bar: Progress
    task: Any
    counts: Counts = field(default_factory=Counts)
    made: int = 0

    def add(self, counts: Counts, made: int = 0) -> None:
        self.counts += counts
        self.made += made
        self.bar.update(self.task, advance=counts.rows)


def _explained(explainer: Explainer, tasks: Iterator[Task], ray: str | None, workers: int | None) -> Iterator[Shard]:
    if ray is not None:
        return explain_by_workers(explainer, tasks, ray, workers)
    return (explain_shard(explainer, task) for task in tasks)


def _tasks(explainer: Explainer, folder: Folder, rows: Iterator[Values], size: int, count: _Count) -> Iterator[Task]:
    """Tasks of the shards that are missing; those that exist are counted."""
    if size < 1:
        raise InputError(f"rows_per_shard={size}: give at least 1")
    for number in itertools.count():
        if not (chunk := list(itertools.islice(rows, size))):
            return
        if (earlier := folder.counts(number)) is None:
            yield Task.of(number, size, chunk, explainer.columns)
        else:
            count.add(earlier)


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
        "kind": explainer.kind,
        "columns": list(explainer.columns),
        "latents": list(explainer.at),
        "ledger": explainer.ledger,
        "data": described(data),
        "precision": precision,
        "rows per shard": rows_per_shard,
    }


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True))
    more = (TextColumn("{task.completed:.0f} rows"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *more, console=Console(stderr=True), transient=True, disable=not shown)
