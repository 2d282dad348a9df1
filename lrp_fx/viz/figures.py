"""Matplotlib figures without global state, with the palette of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_fx.extras import require
from lrp_fx.viz.colours import RGB, SCALES, ink
from lrp_fx.viz.words import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE, _TEXT, _SMALL = 11, 9, 7.5


def new_figure(width: float, height: float, layout: str | None = "constrained", extra: str = "results") -> Figure:
    """A figure outside of pyplot, with a size in inches; ``extra`` is the extra that installs matplotlib.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", extra)
    canvas: Any = require("matplotlib.backends.backend_agg", extra)
    figure = figures.Figure(figsize=(width, height), layout=layout, facecolor="white")
    canvas.FigureCanvasAgg(figure)
    return figure


def fractions(colour: RGB) -> tuple[float, ...]:
    """A colour for matplotlib: components from 0 to 1."""
    return tuple(c / 255 for c in colour)


def colour_map() -> Any:
    """The diverging scale, from blue through white to red."""
    colours: Any = require("matplotlib.colors", "results")
    return colours.LinearSegmentedColormap.from_list("lrp_fx", [fractions(stop) for stop in SCALES["light"]])


def scale_of(values: Any) -> float:
    """The largest magnitude, which has the full colour; 1 if all values are 0."""
    finite = np.asarray(values, dtype=float)
    return float(np.abs(finite).max(initial=0.0)) or 1.0


def plain(text: str, most: int = 40, ends: bool = False) -> str:
    """Text for a label: one line of at most ``most`` characters; with ``ends`` its end is kept, for paths."""
    line = " ".join(visible(text).split())
    if len(line) <= most:
        return line
    return "…" + line[1 - most :] if ends else line[: most - 1] + "…"


def literal(*texts: Any) -> None:
    """Show labels literally: dollar signs do not mark formulas."""
    for text in texts:
        text.set_parse_math(False)


def heading(axes: Axes, text: str) -> None:
    """A title on the left."""
    if text:
        literal(axes.set_title(plain(text, 90), loc="left", fontsize=_TITLE, color=ink("ink")))


def ticks(axis: Any, labels: Sequence[str], positions: Sequence[float] | None = None, ends: bool = False) -> None:
    """Labels of an axis, shown literally; ``ends`` as in :func:`plain`."""
    places = range(len(labels)) if positions is None else positions
    axis.set_ticks(list(places), [plain(text, 32, ends) for text in labels])
    literal(*axis.get_ticklabels())


def colour_bar(figure: Figure, drawn: Any, axes: Any, label: str = "relevance: against / for") -> None:
    """A colour bar."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=_SMALL, color=ink("quiet"))
    bar.ax.tick_params(labelsize=_SMALL)
    bar.outline.set_visible(False)


def bare(axes: Axes, *sides: str) -> None:
    """Hide the lines around a plot except on ``sides``."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in sides)
    axes.tick_params(labelsize=_TEXT, length=0)


def remark(figure: Figure, notes: tuple[str, ...]) -> None:
    """Notes below a figure."""
    if notes:
        lines = [line for note in notes for line in _wrapped(f"note: {note}", int(16 * figure.get_figwidth()))]
        literal(figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=_SMALL, color=ink("quiet")))


def _wrapped(text: str, width: int) -> list[str]:
    words, lines = text.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
