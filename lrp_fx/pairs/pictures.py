"""Pictures of pairs: a matrix, two sentences or two images with lines between them, and an HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.pairs.table import SIDES, PairTable
from lrp_fx.viz.colours import background, css, foreground, ink
from lrp_fx.viz.figures import new_figure
from lrp_fx.viz.pages import template

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = 12  #: default number of lines
REST = "rest"  #: name of the last row and column


@dataclass(frozen=True)
class _Shown:
    """One sample without padding.

    Attributes:
        table: (I + 1, J + 1) relevance, with the rests last.
        labels: texts of the features of each side.
        pairs: (first, second, relevance) of the pairs with the largest magnitude, the weakest first.
    """

    table: Tensor
    labels: tuple[list[str], list[str]]
    pairs: list[tuple[int, int, float]]

    @classmethod
    def of(cls, attribution: PairTable, sample: int, lines: int) -> _Shown:
        labels, table = sides_of(attribution, sample)
        back = [{int(i): n for n, i in enumerate(mask[sample].nonzero()[:, 0].tolist())} for mask in attribution.shown]
        pairs = [(back[0][p.first], back[1][p.second], p.relevance) for p in attribution.ranked(sample)[:lines]]
        return cls(table, (labels[0][:-1], labels[1][:-1]), pairs[::-1])

    @property
    def largest(self) -> float:
        """The magnitude of the strongest pair, which has the full colour."""
        return max((abs(amount) for *_, amount in self.pairs), default=0.0) or 1.0


def sides_of(attribution: PairTable, sample: int = 0) -> tuple[tuple[list[str], list[str]], Tensor]:
    """Names of the features of both sides, without padding and with the rest last, and the table of their pairs."""
    places = [mask[sample].nonzero()[:, 0].cpu() for mask in attribution.shown]
    labels = [
        [texts[i] if (texts := attribution.texts(side, sample)) else str(i) for i in listed.tolist()] + [REST]
        for side, listed in enumerate(places)
    ]
    rows, columns = (torch.cat([listed, listed.new_full((1,), -1)]) for listed in places)
    table = attribution.table[sample].detach().double().cpu()[rows][:, columns]
    return (labels[0], labels[1]), table


def draw_pairs(attribution: PairTable, sample: int = 0, *, ax: Axes | None = None) -> Figure:
    """Matrix of one sample: a row per feature of the first input, a column per feature of the second, rests last.

    Args:
        attribution: result of :func:`lrp_fx.explain_pairs`.
        sample: index of the sample.
        ax: axes to draw on; None for a new figure.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    shown = _Shown.of(attribution, sample, 1)
    rows, columns = shown.table.shape
    ax = _axes(ax, (max(3.2, 0.34 * columns + 1.6), max(2.8, 0.3 * rows + 1.4)))
    colours = [[_shade(v / shown.largest) for v in row] for row in shown.table.tolist()]
    ax.imshow(colours, aspect="auto")
    small = max(rows, columns) <= 40
    if small:
        ax.set_xticks(range(columns), [*shown.labels[1], REST], rotation=90, fontsize=8)
        ax.set_yticks(range(rows), [*shown.labels[0], REST], fontsize=8)
    ax.axhline(rows - 1.5, color=ink("quiet"), linewidth=0.8)
    ax.axvline(columns - 1.5, color=ink("quiet"), linewidth=0.8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    similarity, rest = float(attribution.similarity[sample]), float(attribution.remainder[sample])
    ax.set_xlabel(f"{attribution.kind} {similarity:.4g}, of which rest {rest:.4g}", fontsize=8)
    return ax.figure  # type: ignore[return-value]


def draw_connections(
    attribution: PairTable,
    sample: int = 0,
    *,
    images: Sequence[Tensor] | None = None,
    lines: int = LINES,
    ax: Axes | None = None,
) -> Figure:
    """Two sentences, or two images side by side, with a line for each of the strongest pairs: red is positive, blue
    negative.

    Args:
        attribution: result of :func:`lrp_fx.explain_pairs`.
        sample: index of the sample.
        images: the two images, (C, H, W), for features that are patches; None for those of the result, if it has them.
        lines: number of pairs with a line.
        ax: axes to draw on; None for a new figure.

    Raises:
        InputError: for images, if features are not patches of them.
        MissingExtraError: if matplotlib is not installed.
    """
    shown = _Shown.of(attribution, sample, lines)
    images = _images_of(attribution, sample) if images is None else images
    if images is None:
        size = (max(4.0, 0.75 * max(map(len, shown.labels))), 2.6)
        ax, places = _axes(ax, size), _place_words(shown.labels)
        for side, words in enumerate(shown.labels):
            for text, (x, y) in zip(words, places[side], strict=True):
                ax.text(x, y, text, ha="center", va="bottom" if side == 0 else "top", fontsize=9)
        widest = max(x for side in places for x, _ in side) if any(places) else 1.0
        ax.set(xlim=(-0.06 * widest - 0.5, 1.06 * widest + 0.5), ylim=(-0.35, 1.35))
    else:
        ax = _axes(ax, (7.0, 3.6))
        places = _place_images(ax, attribution, images)
    gap = 0.06 if images is None else 0.0  # between a line and the words it joins
    for first, second, amount in shown.pairs:
        (x, y), (u, v) = places[0][first], places[1][second]
        y, v = y - gap, v + gap
        share = amount / shown.largest
        ax.plot(
            [x, u],
            [y, v],
            color=_shade(0.35 * (1 if share >= 0 else -1) + 0.65 * share),
            linewidth=0.6 + 3 * abs(share),
            zorder=3,
        )
    ax.set_axis_off()
    return ax.figure  # type: ignore[return-value]


def pairs_page(
    attribution: PairTable,
    *,
    title: str = "Why these two are alike",
    facts: Mapping[str, str] | None = None,
    lines: int = LINES,
    amounts: bool = True,
) -> str:
    """A self-contained page: of every sample two texts with lines between them, the strongest pairs, the whole matrix.

    Args:
        attribution: result of :func:`lrp_fx.explain_pairs`.
        title: heading.
        facts: further names and values of every sample.
        lines: number of pairs with a line.
        amounts: show the similarity and its parts.

    Raises:
        MissingExtraError: if jinja2 is not installed.
    """
    samples = [_section(one, facts or {}, lines, amounts) for one in attribution]
    return str(template("pairs.html.jinja", "lrp_fx.pairs").render(title=title, samples=samples))


def _section(one: PairTable, facts: Mapping[str, str], lines: int, amounts: bool) -> dict[str, Any]:
    """One sample for the template."""
    shown = _Shown.of(one, 0, lines)
    similarity, rest = float(one.similarity[0]), float(one.remainder[0])
    parts = {one.kind: f"{similarity:.4g}", "pairs": f"{similarity - rest:.4g}", REST: f"{rest:.4g}"} if amounts else {}
    rows = [
        {"label": label, "cells": [_cell(v, shown.largest) for v in row]}
        for label, row in zip([*shown.labels[0], REST], shown.table.tolist(), strict=True)
    ]
    ranked = [
        {"first": shown.labels[0][i], "second": shown.labels[1][j], **_cell(v, shown.largest)}
        for i, j, v in reversed(shown.pairs)
    ]
    return {
        "facts": parts | dict(facts), "drawing": _drawing(shown), "rows": rows, "ranked": ranked,
        "columns": [*shown.labels[1], REST], "notes": [str(note) for note in one.notes],
    }  # fmt: skip


def _cell(amount: float, largest: float) -> dict[str, Any]:
    """Colour and text of an amount, in three digits of the largest amount; a dot if it rounds to 0."""
    colour = background(amount / largest)
    decimals = max(2 - math.floor(math.log10(largest)), 0)
    text = f"{amount:.{decimals}f}" if round(amount, decimals) else "·"
    share = round(100 * min(abs(amount) / largest, 1.0), 1)
    return {
        "amount": amount,
        "number": text,
        "background": css(colour),
        "foreground": css(foreground(colour)),
        "share": share,
    }


def _drawing(shown: _Shown, letter: float = 8.4, gap: float = 12.0, height: float = 150.0) -> dict[str, Any]:
    """Boxes of words in two rows and lines between them, in pixels."""
    sides, widths = [], []
    for side, words in enumerate(shown.labels):
        amounts = shown.table.sum(1 - side)[:-1].tolist()
        largest = max(map(abs, amounts), default=0.0) or 1.0
        x, boxes = 0.0, []
        for text, amount in zip(words, amounts, strict=True):
            width = letter * max(len(text), 1) + 12
            boxes.append(
                {"text": text or "·", "x": x, "width": width, "middle": x + width / 2, **_cell(amount, largest)}
            )
            x += width + gap
        sides.append(boxes)
        widths.append(x - gap)
    whole = max([*widths, 1.0])
    for boxes, width in zip(sides, widths, strict=True):
        for box in boxes:
            box["x"] += (whole - width) / 2
            box["middle"] += (whole - width) / 2
    lines = [
        {
            "x": sides[0][i]["middle"], "u": sides[1][j]["middle"], "width": 0.8 + 4 * abs(v) / shown.largest,
            "colour": css(background(0.35 * (1 if v >= 0 else -1) + 0.65 * v / shown.largest)), "amount": v,
            "pair": f"{shown.labels[0][i]} – {shown.labels[1][j]}",
        }
        for i, j, v in shown.pairs
    ]  # fmt: skip
    return {"sides": sides, "lines": lines, "width": whole, "height": height}


def _images_of(attribution: PairTable, sample: int) -> list[Tensor] | None:
    """The images of a sample whose patches are its features, if the result has its inputs."""
    values = [attribution.inputs.get(side) for side in SIDES]
    if None in attribution.grids or any(value is None or value.dim() != 4 for value in values):
        return None
    return [value[sample] for value in values if value is not None]


def _place_words(labels: tuple[list[str], list[str]]) -> list[list[tuple[float, float]]]:
    """(x, y) of the words of both sides, in two centred rows."""
    rows, widths = [], []
    for words in labels:
        x, places = 0.0, []
        for text in words:
            width = 0.35 * max(len(text), 1) + 0.5
            places.append(x + width / 2)
            x += width
        rows.append(places)
        widths.append(x)
    shifts = [(max(widths) - width) / 2 for width in widths]
    return [
        [(x + shift, float(1 - side)) for x in places]
        for side, (places, shift) in enumerate(zip(rows, shifts, strict=True))
    ]


def _place_images(ax: Axes, attribution: PairTable, images: Sequence[Tensor]) -> list[list[tuple[float, float]]]:
    """Draw two images side by side; returns (x, y) of the centres of their patches."""
    places, left = [], 0.0
    for image, grid in zip(images, attribution.grids, strict=True):
        if grid is None or image.dim() != 3 or image.shape[1] % grid[0] or image.shape[2] % grid[1]:
            raise InputError(
                f"an image of shape {tuple(image.shape)} has no features in {grid} rows and columns: give the "
                "(C, H, W) images whose patches were explained (features=16)"
            )
        channels, height, width = image.shape
        low, high = image.amin(), image.amax()
        pixels = ((image - low) / (high - low).clamp(min=1e-12)).detach().float().cpu()
        pixels = pixels.permute(1, 2, 0).expand(-1, -1, 3) if channels == 1 else pixels.permute(1, 2, 0)[..., :3]
        ax.imshow(pixels.numpy(), extent=(left, left + width, height, 0))
        down, across = height / grid[0], width / grid[1]
        places.append([(left + (c + 0.5) * across, (r + 0.5) * down) for r in range(grid[0]) for c in range(grid[1])])
        left += 1.25 * width
    ax.set(xlim=(0, left), ylim=(max(i.shape[1] for i in images), 0))
    return places


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    return new_figure(*size, extra="concepts").add_subplot()


def _shade(share: float) -> tuple[float, ...]:
    return tuple(c / 255 for c in background(share))
