"""Figures of clusters of relevance maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_fx.viz import figures
from lrp_fx.viz.colours import bar_colour, ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vP*X"  #: marks of clusters, so that a reader need not tell colours apart


def draw_clusters(
    places: np.ndarray,
    labels: np.ndarray,
    eigenvalues: np.ndarray,
    means: Sequence[Any],
    *,
    title: str = "",
) -> Figure:
    """Rows in a plane with a mark for each cluster, eigenvalues, and the mean map of each cluster on its own scale.

    Args:
        places: (N, 2) places of rows.
        labels: (N,) cluster of each row.
        eigenvalues: in ascending order.
        means: for each cluster a map, (H, W) or (T,), or the (word, relevance) of some words.
        title: heading.
    """
    count = len(means)
    shown = min(count, 6)
    figure = figures.new_figure(max(7.5, 1.9 * shown), 5.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    upper, lower = parts
    plane, values = upper.subplots(1, 2, width_ratios=[2, 1])
    colours = _colours(count)
    for cluster in range(count):
        mine = labels == cluster
        label = f"{cluster}: {int(mine.sum())} rows"
        style = {"marker": _MARKS[cluster % len(_MARKS)], "s": 14, "linewidths": 0, "alpha": 0.85, "label": label}
        plane.scatter(places[mine, 0], places[mine, 1], color=colours[cluster], **style)
    figures.bare(plane)
    plane.set_xticks([])
    plane.set_yticks([])
    plane.legend(fontsize=7.5, frameon=False, title="cluster", title_fontsize=7.5, loc="best")
    figures.heading(plane, title)
    numbers = np.arange(1, len(eigenvalues) + 1)
    values.plot(numbers, eigenvalues, color=ink("quiet"), linewidth=0.8, marker="o", markersize=3.5)
    values.axvline(count + 0.5, color=ink("mark"), linewidth=0.9, linestyle=(0, (4, 3)))
    values.set_xticks(numbers[::2])
    values.set_xlabel(f"eigenvalue ({count} clusters)", fontsize=8, color=ink("quiet"))
    figures.bare(values, "bottom", "left")
    for axes, (cluster, mean) in zip(np.atleast_1d(lower.subplots(1, shown)), enumerate(means), strict=False):
        _draw_mean(axes, mean)
        axes.set_title(f"mean of {cluster}", fontsize=8, color=colours[cluster])
    return figure


def _draw_mean(axes: Any, mean: Any) -> None:
    if not isinstance(mean, np.ndarray):
        amounts = [amount for _, amount in mean]
        axes.barh(range(len(mean)), amounts, color=[figures.fractions(bar_colour(a)) for a in amounts])
        figures.ticks(axes.yaxis, [word for word, _ in mean])
        axes.invert_yaxis()
        figures.bare(axes)
        axes.set_xticks([])
        return
    plane = mean if mean.ndim == 2 else mean[None]
    scale = figures.scale_of(mean)
    style = {"cmap": figures.colour_map(), "vmin": -scale, "vmax": scale, "interpolation": "nearest"}
    axes.imshow(plane, aspect="equal" if mean.ndim == 2 else "auto", **style)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(ink("line"))


def _colours(count: int) -> list[Any]:
    """Colours of clusters, none of which is one of relevance: evenly spaced in lightness, for colour-blind readers."""
    maps: Any = figures.require("matplotlib", "results")
    return list(maps.colormaps["viridis"](np.linspace(0.0, 0.85, count)))
