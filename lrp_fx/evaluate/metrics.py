"""Metrics of explanations: each gives one number per sample from (B, F) relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lrp_fx.evaluate.perturbation import Curves, leave_one_out, perturbation, ranks
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.extras import require


@dataclass(frozen=True)
class Scene:
    """A batch with the values that metrics need for every method; each is computed once."""

    task: Task
    batch: Batch

    @cached_property
    def value(self) -> Tensor:
        """(B,) explained values."""
        return self.task.score(self.batch.inputs, self.batch.target)

    @cached_property
    def emptied(self) -> Tensor:
        """(B,) explained values with every eligible feature removed."""
        inputs = self.task.features.perturb(self.batch.inputs, self.batch.eligible)
        return self.task.score(inputs, self.batch.target)

    @cached_property
    def effects(self) -> Tensor:
        """(B, F) leave-one-out effects."""
        return leave_one_out(self.task, self.batch)


@dataclass(frozen=True)
class Trial:
    """One method's explanation of a batch.

    Attributes:
        scene: the batch.
        relevance: (B, F).
        sums_to_value: see :class:`lrp_fx.evaluate.Method`.
        steps: steps of the perturbation curves.
    """

    scene: Scene
    relevance: Tensor
    sums_to_value: bool = False
    steps: int = 10

    @cached_property
    def curves(self) -> Curves:
        """The perturbation curves."""
        return perturbation(self.scene.task, self.scene.batch, self.relevance, self.steps)


#: trial -> name -> (B,) values; NaN for samples without a value, no entry where the metric does not apply
Metric = Callable[[Trial], Mapping[str, Tensor]]


def abpc(trial: Trial) -> dict[str, Tensor]:
    """Area between the perturbation curves, ``Curves.abpc``."""
    return {"abpc": trial.curves.abpc}


def deletion(trial: Trial) -> dict[str, Tensor]:
    """Area under the deletion curve, ``Curves.deletion`` (lower is better)."""
    return {"deletion": trial.curves.deletion}


def insertion(trial: Trial) -> dict[str, Tensor]:
    """Area under the insertion curve, ``Curves.insertion``."""
    return {"insertion": trial.curves.insertion}


def localisation(trial: Trial) -> dict[str, Tensor]:
    """``top1``: whether the most relevant eligible feature is annotated. ``iou``: intersection over union of the k most
    relevant eligible features and the k annotated ones. Only eligible annotated features count."""
    batch = trial.scene.batch
    if batch.annotated is None:
        return {}
    annotated = batch.annotated & batch.eligible
    count = annotated.sum(1)
    place = ranks(trial.relevance, batch.eligible)
    top = annotated & (place == 0)
    shared = (annotated & (place < count[:, None])).sum(1)
    iou = shared / (2 * count - shared)
    unknown = torch.where(count == 0, torch.nan, 0.0)
    return {"top1": top.any(1) + unknown, "iou": iou.nan_to_num() + unknown}


def shares(trial: Trial) -> dict[str, Tensor]:
    """Shares of the positive relevance: ``inside``, of annotated features (higher is better), and ``blank``, of blank
    features (lower is better). 0 where no relevance is positive."""
    batch, positive = trial.scene.batch, trial.relevance.clamp(min=0)
    total = positive.sum(1).clamp(min=torch.finfo(positive.dtype).tiny)
    labels = {"inside": batch.annotated, "blank": batch.blank}
    return {name: (positive * label).sum(1) / total for name, label in labels.items() if label is not None}


def leave_one_out_correlation(trial: Trial) -> dict[str, Tensor]:
    """``loo``: Spearman correlation with the leave-one-out effects over the eligible features."""
    scene = trial.scene
    return {"loo": rank_correlation(trial.relevance, scene.effects, scene.batch.eligible)}


def completeness(trial: Trial) -> dict[str, Tensor]:
    """``share``, for methods that distribute the explained value: the fraction that the features get (the rest goes to
    biases and other sources). ``gap``, for others: |sum of relevance - (f(x) - f(all eligible features removed))|."""
    scene = trial.scene
    if trial.sums_to_value:
        return {"share": trial.relevance.sum(1) / scene.value}
    total = (trial.relevance * scene.batch.eligible).sum(1)
    return {"gap": (total - (scene.value - scene.emptied)).abs()}


def rank_correlation(a: Tensor, b: Tensor, eligible: Tensor) -> Tensor:
    """(B,) Spearman correlations of the rows over their eligible features; 0 where a row is constant, NaN with fewer
    than two eligible features."""
    stats: Any = require("scipy.stats", "evaluate")
    correlations = []
    for x, y, mask in zip(a.double(), b.double(), eligible, strict=True):
        x, y = x[mask], y[mask]
        if len(x) < 2:
            correlations.append(float("nan"))
        elif bool((x == x[0]).all()) or bool((y == y[0]).all()):
            correlations.append(0.0)
        else:
            correlations.append(float(stats.spearmanr(x.numpy(), y.numpy()).statistic))
    return torch.tensor(correlations, dtype=torch.float64)


METRICS: dict[str, Metric] = {
    "abpc": abpc,
    "deletion": deletion,
    "insertion": insertion,
    "localisation": localisation,
    "shares": shares,
    "loo": leave_one_out_correlation,
    "completeness": completeness,
}
