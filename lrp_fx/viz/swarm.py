"""Beeswarms: many amounts in rows, a point for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lrp_fx.viz import figures
from lrp_fx.viz.colours import ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 90  #: columns across a figure in which points stand above each other
_HALF = 0.4  #: largest distance of a point from the middle of its row
_POINTS = 1500  #: most points of a row


def draw_beeswarm(names: Sequence[str], amounts: Sequence[np.ndarray], *, title: str = "", label: str = "") -> Figure:
    """A row of points for each name, from top to bottom, with a bar at their mean.

    Args:
        names: names of the rows.
        amounts: for each row its amounts; of very many, evenly spaced quantiles are drawn.
        title: heading.
        label: label of the axis.
    """
    figure = figures.new_figure(7.5, 1.3 + 0.32 * len(names))
    axes = figure.add_subplot()
    drawn = [_quantiles(np.asarray(row, float)) for row in amounts]
    reach = figures.scale_of(np.concatenate(drawn) if drawn else np.zeros(1))
    axes.axvline(0, color=ink("quiet"), linewidth=0.8)
    most = max((np.bincount(_bins(row, reach)).max(initial=1) for row in drawn), default=1)
    for place, (row, whole) in enumerate(zip(drawn, amounts, strict=True)):
        heights = place + _offsets(_bins(row, reach)) * min(_HALF * 2 / most, 0.12)
        style = {"cmap": figures.colour_map(), "vmin": -reach, "vmax": reach, "edgecolors": ink("quiet")}
        axes.scatter(row, heights, c=row, s=11, linewidths=0.25, **style)
        mean = float(np.mean(whole))
        axes.plot([mean, mean], [place - _HALF, place + _HALF], color=ink("ink"), linewidth=1.4)
    figures.ticks(axes.yaxis, [f"{name} ({len(row)})" for name, row in zip(names, amounts, strict=True)], ends=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.04)
    figures.bare(axes, "bottom")
    axes.spines["bottom"].set_color(ink("line"))
    axes.grid(axis="y", color=ink("line"), linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=9, color=ink("quiet"))
    figures.heading(axes, title)
    return figure


def _quantiles(row: np.ndarray) -> np.ndarray:
    return np.sort(row) if len(row) <= _POINTS else np.quantile(row, np.linspace(0, 1, _POINTS))


def _bins(row: np.ndarray, reach: float) -> np.ndarray:
    return np.round((row / reach + 1) / 2 * _BINS).astype(int)


def _offsets(bins: np.ndarray) -> np.ndarray:
    """0, 1, -1, 2, -2, ... for the points of each bin."""
    offsets = np.zeros(len(bins))
    for number in np.unique(bins):
        which = np.flatnonzero(bins == number)
        order = np.arange(len(which))
        offsets[which] = np.where(order % 2, (order + 1) // 2, -(order // 2))
    return offsets
