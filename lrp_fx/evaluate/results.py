"""Results of an evaluation: a value per sample, summaries, plots and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_fx.extras import require
from lrp_fx.files import write_text
from lrp_fx.viz.curves import plot_results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RESAMPLES = 2000
_FILES = ("values", "curves", "cost")


def bootstrap(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (Efron and Tibshirani 1993, chapter 13)."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Results:
    """Results of :func:`lrp_fx.evaluate.evaluate`.

    Attributes:
        values: task, method, metric, sample, value: one row per sample.
        curves: task, method, order (most_first, least_first), taken (fraction of the features), value (mean over
            samples).
        cost: task, method; seconds of wall time and of processor time (all threads) per explanation, medians over
            batches without the first use; samples explained, 0 for a method that does not apply.
    """

    values: pd.DataFrame
    curves: pd.DataFrame
    cost: pd.DataFrame

    @classmethod
    def concat(cls, results: Sequence[Results]) -> Results:
        """Several results as one."""
        pandas: Any = require("pandas", "evaluate")
        return cls(*(pandas.concat([getattr(r, name) for r in results], ignore_index=True) for name in _FILES))

    def summary(self, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Mean with its bootstrap interval, by (task, metric, method): columns mean, low, high, samples."""
        pandas: Any = require("pandas", "evaluate")
        rows = {}
        for key, samples in self.values.groupby(["task", "metric", "method"], sort=False)["value"]:
            measured = samples.dropna().to_numpy()
            if len(measured):
                rows[key] = (measured.mean(), *bootstrap(measured, level, seed=seed), len(measured))
        index = pandas.MultiIndex.from_tuples(list(rows), names=["task", "metric", "method"])
        return pandas.DataFrame(list(rows.values()), index=index, columns=["mean", "low", "high", "samples"])

    def against(self, base: str, metric: str = "abpc", level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Mean difference of every method to ``base`` on common samples, with its bootstrap interval, by (task,
        method): columns mean, low, high, samples."""
        pandas: Any = require("pandas", "evaluate")
        frame = self.values[self.values["metric"] == metric]
        rows = {}
        for task, part in frame.groupby("task", sort=False):
            table = part.pivot(index="sample", columns="method", values="value")
            for method in part["method"].unique():
                if method != base and base in table:
                    gaps = (table[method] - table[base]).dropna().to_numpy()
                    rows[task, method] = (
                        gaps.mean(),
                        *bootstrap(gaps, level, seed=seed),
                        len(gaps),
                    )
        index = pandas.MultiIndex.from_tuples(list(rows), names=["task", "method"])
        return pandas.DataFrame(list(rows.values()), index=index, columns=["mean", "low", "high", "samples"])

    def plot(self, metric: str = "abpc") -> Figure:
        """Perturbation curves, and the means of ``metric`` with their intervals, a row per task (matplotlib)."""
        return plot_results(self, metric)

    def save(self, folder: str | Path) -> None:
        """Write three CSV files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            write_text(Path(folder) / f"{name}.csv", getattr(self, name).to_csv(index=False))

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read the files of :meth:`save`."""
        pandas: Any = require("pandas", "evaluate")
        return cls(*(pandas.read_csv(Path(folder) / f"{name}.csv") for name in _FILES))
