"""Plots of an evaluation: perturbation curves, and means with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lrp_fx.errors import InputError
from lrp_fx.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Results(Protocol):
    """Interface of the results to plot (:class:`lrp_fx.evaluate.Results`)."""

    @property
    def curves(self) -> Any:
        """Task, method, order, taken, value (a data frame)."""

    @property
    def cost(self) -> Any:
        """Task, method, seconds (a data frame)."""

    def summary(self) -> Any:
        """Means with their intervals by task, metric and method (a data frame)."""


def plot_results(results: Results, metric: str = "abpc") -> Figure:
    """A row per task: the curves of every method, and the means of ``metric`` with 95% intervals.

    Raises:
        InputError: if ``metric`` was not measured.
    """
    summary = results.summary()
    if metric not in summary.index.get_level_values("metric"):
        measured = ", ".join(sorted(set(summary.index.get_level_values("metric"))))
        raise InputError(f"metric {metric!r} was not measured: choose one of {measured}")
    tasks = list(dict.fromkeys(results.cost["task"]))
    methods = list(dict.fromkeys(results.cost["method"]))
    colours = {method: f"C{i % 10}" for i, method in enumerate(methods)}
    figure = new_figure(11, 4 * len(tasks), extra="evaluate")
    for (curves, bars), task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        plot_curves(curves, results, task, colours)
        plot_means(bars, results, task, metric, colours)
    return figure


def plot_curves(axes: Axes, results: Results, task: str, colours: dict[str, str]) -> None:
    """Mean explained value over the fraction of removed features: solid most relevant first, dashed least relevant."""
    frame = results.curves[results.curves["task"] == task]
    for method, colour in colours.items():
        for order, style in (("most_first", "-"), ("least_first", "--")):
            part = frame[(frame["method"] == method) & (frame["order"] == order)]
            if len(part):
                label = method if order == "most_first" else None
                axes.plot(part["taken"], part["value"], style, color=colour, label=label, linewidth=1.2)
    axes.set(title=task, xlabel="fraction of removed features", ylabel="explained value (mean)")
    axes.legend(fontsize="x-small", frameon=False)


def plot_means(axes: Axes, results: Results, task: str, metric: str, colours: dict[str, str]) -> None:
    """A bar per method with its interval, in the order of the evaluation."""
    summary = results.summary()
    methods = [m for m in colours if (task, metric, m) in summary.index]
    rows = [summary.loc[(task, metric, m)] for m in methods]
    means = [row["mean"] for row in rows]
    errors = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
    axes.barh(methods, means, xerr=errors, color=[colours[m] for m in methods], error_kw={"elinewidth": 1})
    axes.invert_yaxis()
    axes.set(title=f"{task}: {metric}, mean with 95% interval")
