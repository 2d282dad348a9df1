"""Figures of amounts: bars of words and features, and the waterfall that ends at the explained value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrp_fx.viz import figures
from lrp_fx.viz.colours import bar_colour, ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Amounts = Sequence[tuple[str, float]]


def draw_bars(amounts: Amounts, *, title: str = "", total: str = "", notes: tuple[str, ...] = ()) -> Figure:
    """A bar for each amount, from top to bottom.

    Args:
        amounts: (name, amount) of each bar.
        title: heading.
        total: their sum in words.
        notes: lines below the figure.
    """
    figure = figures.new_figure(6.5, 1.2 + 0.27 * len(amounts))
    axes = figure.add_subplot()
    places = range(len(amounts))
    values = [amount for _, amount in amounts]
    axes.barh(places, values, color=[figures.fractions(bar_colour(a)) for a in values], height=0.7)
    axes.axvline(0, color=ink("quiet"), linewidth=0.8)
    figures.ticks(axes.yaxis, [name for name, _ in amounts])
    axes.invert_yaxis()
    reach = figures.scale_of(values)
    for place, amount in zip(places, values, strict=True):
        side = 1 if amount >= 0 else -1
        style = {"va": "center", "fontsize": 8, "color": ink("ink")}
        axes.text(amount + 0.015 * reach * side, place, f"{amount:+.3g}", ha="left" if side > 0 else "right", **style)  # type: ignore
    axes.margins(x=0.18)
    figures.bare(axes)
    axes.grid(axis="x", color=ink("line"), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"relevance{f' ({total})' if total else ''}", fontsize=9, color=ink("quiet"))
    figures.heading(axes, title)
    figures.remark(figure, notes)
    return figure


def draw_waterfall(
    base: Amounts, parts: Amounts, target: float, *, title: str = "", value: str = "explained value",
    notes: tuple[str, ...] = (),
) -> Figure:  # fmt: skip
    """Steps from 0 to the explained value: other categories first, then the parts of the inputs.

    Every step begins at the end of the preceding one, and the last one ends at the explained value. A missing amount,
    if there is one, is a step of its own.

    Args:
        base: amounts of biases, softmax, constants.
        parts: amounts of words or features.
        target: the explained value.
        title: heading.
        value: name of the explained value.
        notes: lines below the figure.
    """
    steps = [*base, *parts]
    missing = target - sum(amount for _, amount in steps)
    if abs(missing) > 1e-6 * max(abs(target), *(abs(amount) for _, amount in steps), 1e-300):
        steps.append(("not accounted for", missing))
    figure = figures.new_figure(7.5, 1.5 + 0.28 * (len(steps) + 1))
    axes = figure.add_subplot()
    level, edges = 0.0, [0.0]
    for place, (_, amount) in enumerate(steps):
        shade, pale = figures.fractions(bar_colour(amount)), 0.5 if place < len(base) else 1
        axes.barh(place, amount, left=level, color=shade, height=0.72, alpha=pale)
        axes.plot([level + amount] * 2, [place - 0.36, place + 1.36], color=ink("quiet"), linewidth=0.7)
        level += amount
        edges.append(level)
    axes.barh(len(steps), target, color=ink("ink"), height=0.72)
    axes.axvline(0, color=ink("quiet"), linewidth=0.8)
    reach = max(edges) - min(edges) or 1.0
    for place, (amount, end) in enumerate(zip([a for _, a in steps] + [target], [*edges[1:], target], strict=True)):
        right = max(end, end - amount if place < len(steps) else 0.0)
        shown = f"{amount:+.3g}" if place < len(steps) else f"{amount:.4g}"
        weight = "normal" if place < len(steps) else "bold"
        axes.text(right + 0.012 * reach, place, shown, va="center", fontsize=8, color=ink("ink"), fontweight=weight)
    if base and parts:
        axes.axhline(len(base) - 0.5, color=ink("line"), linewidth=0.8, linestyle=(0, (4, 3)))
    figures.ticks(axes.yaxis, [*(name for name, _ in steps), value])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    figures.bare(axes, "bottom")
    axes.spines["bottom"].set_color(ink("line"))
    label = "sum so far (pale: not of the input)" if base else "sum so far"
    axes.set_xlabel(label, fontsize=9, color=ink("quiet"))
    figures.heading(axes, title)
    figures.remark(figure, notes)
    return figure
