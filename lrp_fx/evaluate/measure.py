"""Evaluate methods on a task: explain its samples batch by batch, and compute the metrics of every explanation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lrp_fx.errors import InputError, NumericalError
from lrp_fx.evaluate.methods import Explainer, Method
from lrp_fx.evaluate.metrics import METRICS, Metric, Scene, Trial
from lrp_fx.evaluate.randomisation import randomisation
from lrp_fx.evaluate.results import Results
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.extras import require


def evaluate(
    task: Task,
    methods: Iterable[Method],
    metrics: Sequence[str | Metric] = ("abpc", "deletion", "insertion", "localisation", "loo", "completeness"),
    batch: int = 32,
    steps: int = 10,
    progress: bool = True,
) -> Results:
    """Evaluate ``methods`` on the samples of ``task``.

    Explained values and leave-one-out effects do not depend on the method, and are computed once per batch.

    Args:
        task: model and samples.
        methods: see ``METHODS`` and ``lrp``.
        metrics: names in ``METRICS``, functions, or "randomisation" (which explains every sample five more times).
        batch: samples explained at a time.
        steps: steps of the perturbation curves.
        progress: whether to show a progress bar.

    Raises:
        InputError: without a method, for an unknown metric, a sample without eligible features, or relevance of another
            shape.
        NumericalError: for relevance that is not finite.
    """
    methods = list(methods)
    if not methods:
        raise InputError("there is no method to evaluate: choose among METHODS, or make one with lrp(rules)")
    unknown = [m for m in metrics if isinstance(m, str) and m not in METRICS and m != "randomisation"]
    if unknown:
        raise InputError(f"unknown metrics {unknown}: choose among {', '.join([*METRICS, 'randomisation'])}")
    chosen = [METRICS[m] if isinstance(m, str) else m for m in metrics if m != "randomisation"]
    scenes = [Scene(task, b) for b in task.batches(batch)]
    for scene in scenes:
        if not bool(scene.batch.eligible.any(1).all()):
            raise InputError(f"task {task.name!r}: a sample has no eligible feature")
    results = []
    with progress_bar(progress) as bar:
        line = bar.add_task(task.name, total=len(methods) * len(scenes))
        for number, method in enumerate(methods):
            bar.update(line, description=f"{task.name}: {method.name}", completed=number * len(scenes))
            findings = _Measured(task.name, method.name)
            explain = method.prepare(task)
            if explain is not None:
                _run(method, explain, scenes, chosen, steps, findings, lambda: bar.advance(line))
                if "randomisation" in metrics:
                    findings.add(randomisation(task, method, batch), 0)
            results.append(findings.results(steps))
    return Results.concat(results)


def _run(
    method: Method,
    explain: Explainer,
    scenes: list[Scene],
    metrics: list[Metric],
    steps: int,
    findings: _Measured,
    tick: Any,
) -> None:
    left = method.limit if method.limit is not None else sum(len(s.batch) for s in scenes)
    explain(scenes[0].batch.part(slice(0, 2)))  # captures and plans
    for scene in scenes:
        if left <= 0:
            break
        if left < len(scene.batch):
            scene = Scene(scene.task, scene.batch.part(slice(0, left)))
        start, used = time.perf_counter(), time.process_time()
        relevance = explain(scene.batch)
        spent = (time.perf_counter() - start, time.process_time() - used)
        trial = Trial(scene, checked(relevance, scene.batch, method.name), method.sums_to_value, steps)
        offset = findings.samples
        findings.timed(*spent, len(scene.batch))
        for metric in metrics:
            findings.add(metric(trial), offset)
        if "curves" in trial.__dict__:  # a metric has computed them
            findings.curves.append((trial.curves.most_first, trial.curves.least_first))
        left -= len(scene.batch)
        tick()


def checked(relevance: Tensor, batch: Batch, method: str) -> Tensor:
    """``relevance``, detached, after a check of its shape and values.

    Raises:
        InputError: if it is empty or not (B, F).
        NumericalError: if it is not finite.
    """
    if relevance.numel() == 0 or relevance.shape != batch.eligible.shape:
        raise InputError(
            f"{method} gave relevance of shape {tuple(relevance.shape)}, the task's features are "
            f"{tuple(batch.eligible.shape)}: a method returns one number per feature"
        )
    if not bool(relevance.isfinite().all()):
        raise NumericalError(f"{method} gave relevance that is not finite: no metric can be computed")
    return relevance.detach()


@dataclass
class _Measured:
    """Measurements of one method on one task."""

    task: str
    method: str
    samples: int = 0
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    rows: list[tuple[str, int, float]] = field(default_factory=list)
    curves: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def timed(self, seconds: float, processor: float, samples: int) -> None:
        self.seconds.append(seconds / samples)
        self.processor.append(processor / samples)
        self.samples += samples

    def add(self, measured: Any, offset: int) -> None:
        for name, values in measured.items():
            self.rows += [(name, offset + i, v) for i, v in enumerate(values.double().tolist())]

    def results(self, steps: int) -> Results:
        pandas: Any = require("pandas", "evaluate")
        values = pandas.DataFrame(self.rows, columns=["metric", "sample", "value"])
        curves = []
        if self.curves:
            for order, batches in zip(("most_first", "least_first"), zip(*self.curves, strict=True), strict=True):
                mean = torch.cat(batches).double().mean(0).tolist()
                curves += [(order, step / steps, v) for step, v in enumerate(mean)]
        curve_rows = pandas.DataFrame(curves, columns=["order", "taken", "value"])
        spent = [statistics.median(times) if times else float("nan") for times in (self.seconds, self.processor)]
        cost = pandas.DataFrame([[*spent, self.samples]], columns=["seconds", "processor", "samples"])
        for frame in (values, curve_rows, cost):
            frame.insert(0, "task", self.task)
            frame.insert(1, "method", self.method)
        return Results(values, curve_rows, cost)


def progress_bar(shown: bool) -> Progress:
    """A progress bar on standard error that disappears at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
