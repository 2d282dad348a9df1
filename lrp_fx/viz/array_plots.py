"""Figures of arrays: images, overlays, waveforms, spectrograms, series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lrp_fx.viz import figures
from lrp_fx.viz.brightness import channels_last
from lrp_fx.viz.colours import ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 300  #: most columns of a waveform


def draw_image(
    relevance: np.ndarray, image: np.ndarray | None, *, overlay: bool = False, title: str = "",
    notes: tuple[str, ...] = (),
) -> Figure:  # fmt: skip
    """A heat map of an image, beside the image or over a grey copy of it.

    Args:
        relevance: (H, W).
        image: (C, H, W), one or three channels between 0 and 1; None if unknown.
        overlay: draw the map over the image.
        title: heading.
        notes: remarks below the figure.
    """
    count = 2 if image is not None else 1
    high, wide = relevance.shape
    side = 3.4
    figure = figures.new_figure(side * count * min(max(wide / high, 0.5), 2.0) + 0.9, side + 0.6)
    axes = figure.subplots(1, count, squeeze=False)[0]
    scale = figures.scale_of(relevance)
    style = {"cmap": figures.colour_map(), "vmin": -scale, "vmax": scale, "interpolation": "nearest"}
    if image is not None:
        picture = channels_last(image)
        axes[0].imshow(picture)
        if overlay:
            grey = picture @ [0.299, 0.587, 0.114]
            axes[1].imshow(0.45 + 0.55 * grey, cmap="gray", vmin=0, vmax=1)
            style["alpha"] = np.clip(np.abs(relevance) / scale, 0, 1)
    drawn = axes[-1].imshow(relevance, **style)
    for one in axes:
        one.set_axis_off()
    figures.heading(axes[0], title)
    if overlay:
        drawn = axes[-1].imshow(np.full_like(relevance, np.nan), **{**style, "alpha": None})
    figures.colour_bar(figure, drawn, list(axes))
    figures.remark(figure, notes)
    return figure


def draw_waveform(
    signal: np.ndarray | None, relevance: np.ndarray, *, rate: float | None = None, title: str = "",
    notes: tuple[str, ...] = (),
) -> Figure:  # fmt: skip
    """A sound over its relevance. A column of equal duration shows summed relevance and the extremes of the sound.

    Args:
        signal: (T,) the sound; None if unknown.
        relevance: (T,).
        rate: samples per second; None labels the axis with sample numbers.
        title: heading.
        notes: remarks below the figure.
    """
    length = len(relevance)
    edges = np.unique(np.linspace(0, length, min(_BINS, length) + 1).astype(int))
    sums = np.add.reduceat(relevance, edges[:-1])
    times = edges / rate if rate else edges.astype(float)
    figure = figures.new_figure(9, 3.4)
    axes = figure.add_subplot()
    scale = figures.scale_of(sums)
    low, high = (-1.0, 1.0) if signal is None else (float(signal.min()), float(signal.max()))
    room = 0.05 * (high - low or 1.0)
    grid = np.array([low - room, high + room])
    drawn = axes.pcolormesh(times, grid, sums[None], cmap=figures.colour_map(), vmin=-scale, vmax=scale)
    if signal is not None:
        tops, bottoms = np.maximum.reduceat(signal, edges[:-1]), np.minimum.reduceat(signal, edges[:-1])
        middles = (times[:-1] + times[1:]) / 2
        axes.fill_between(middles, bottoms, tops, facecolor=(0, 0, 0, 0.08), edgecolor=ink("ink"), linewidth=0.7)
    axes.set_xlabel("seconds" if rate else "sample of the sound", fontsize=9, color=ink("quiet"))
    axes.set_yticks([])
    figures.bare(axes)
    figures.heading(axes, title)
    figures.colour_bar(figure, drawn, axes, "relevance per column")
    figures.remark(figure, notes)
    return figure


def draw_spectrogram(
    relevance: np.ndarray, values: np.ndarray | None, *, title: str = "", notes: tuple[str, ...] = ()
) -> Figure:
    """A spectrogram above a heat map of its relevance, the lowest band at the bottom.

    Args:
        relevance: (F, T).
        values: (F, T); None if unknown.
        title: heading.
        notes: remarks below the figure.
    """
    count = 2 if values is not None else 1
    figure = figures.new_figure(9, 2.6 * count + 0.5)
    axes = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    if values is not None:
        axes[0].imshow(values, aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest")
        axes[0].set_ylabel("input", fontsize=9, color=ink("quiet"))
    scale = figures.scale_of(relevance)
    style = {"cmap": figures.colour_map(), "vmin": -scale, "vmax": scale, "interpolation": "nearest"}
    drawn = axes[-1].imshow(relevance, aspect="auto", origin="lower", **style)
    axes[-1].set_ylabel("relevance", fontsize=9, color=ink("quiet"))
    axes[-1].set_xlabel("step", fontsize=9, color=ink("quiet"))
    for one in axes:
        figures.bare(one)
    figures.heading(axes[0], title)
    figures.colour_bar(figure, drawn, list(axes))
    figures.remark(figure, notes)
    return figure


def draw_series(
    relevance: np.ndarray, values: np.ndarray | None, names: list[str], *, title: str = "", notes: tuple[str, ...] = ()
) -> Figure:
    """Series over time, each over its relevance.

    Args:
        relevance: (F, T).
        values: (F, T); None if unknown.
        names: names of the F series.
        title: heading.
        notes: remarks below the figure.
    """
    count, length = relevance.shape
    figure = figures.new_figure(9, 0.9 + 1.1 * count)
    axes = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    scale = figures.scale_of(relevance)
    for one, shares, name, row in zip(axes, relevance, names, range(count), strict=True):
        series = None if values is None else values[row]
        low, high = (-1.0, 1.0) if series is None else (float(series.min()), float(series.max()))
        room = 0.1 * (high - low or 1.0)
        times, grid = np.arange(length + 1) - 0.5, np.array([low - room, high + room])
        drawn = one.pcolormesh(times, grid, shares[None], cmap=figures.colour_map(), vmin=-scale, vmax=scale)
        if series is not None:
            one.plot(series, color=ink("ink"), linewidth=1.2, marker="." if length < 80 else None, markersize=3)
        figures.literal(
            one.set_ylabel(figures.plain(name, 16), fontsize=8, color=ink("ink"), rotation=0, ha="right", va="center")
        )
        one.set_yticks([])
        figures.bare(one)
        one.spines["bottom"].set(visible=True, color=ink("line"))
    axes[-1].set_xlabel("step", fontsize=9, color=ink("quiet"))
    figures.heading(axes[0], title)
    figures.colour_bar(figure, drawn, list(axes))
    figures.remark(figure, notes)
    return figure
