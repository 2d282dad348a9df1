"""Explanations in a terminal: coloured words, tables of words and of the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lrp_fx.viz.colours import background, css, foreground, largest
from lrp_fx.viz.words import Word, most_relevant, visible


def _style(share: float) -> Style:
    colour = background(share)
    return Style(bgcolor=css(colour).replace(" ", ""), color=css(foreground(colour)).replace(" ", ""))


def render_tokens(words: Sequence[Word]) -> Text:
    """Words on backgrounds from blue (negative) over white to red (positive); special tokens dimmed."""
    scale = largest(words)
    text = Text()
    for word in words:
        if word.special:
            text.append(f"{visible(word.text)} ", style="dim")
            continue
        text.append(f" {visible(word.text)} ", style=_style(word.relevance / scale))
        if word.text.endswith("\n"):
            text.append("\n")
    return text


def render_scale(words: Sequence[Word]) -> Text:
    """A legend for :func:`render_tokens`."""
    scale = largest(words)
    text = Text(f"{-scale:+.3g} ", style="dim")
    for step in range(-6, 7):
        text.append("  ", style=_style(step / 6))
    return text.append(f" {scale:+.3g}", style="dim")


def top_table(words: Sequence[Word], count: int = 5) -> Table:
    """The most relevant words."""
    return amounts_table("most relevant", [(visible(w.text), w.relevance) for w in most_relevant(words)[:count]])


def ledger_table(amounts: Mapping[str, float]) -> Table:
    """The ledger by category, with its sum, the explained value."""
    return amounts_table("ledger", list(amounts.items()), ("explained value", sum(amounts.values())))


def amounts_table(title: str, amounts: Sequence[tuple[str, float]], total: tuple[str, float] | None = None) -> Table:
    """Names and amounts, with as many decimals as the largest amount needs for four digits, at least four."""
    size = max((abs(amount) for _, amount in amounts if math.isfinite(amount)), default=0.0)
    decimals = 4 if size == 0 else min(max(4, 3 - math.floor(math.log10(size))), 16)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", style="dim")
    table.add_column("relevance", justify="right")
    for name, amount in amounts:
        table.add_row(escape(name), f"{amount:+.{decimals}f}")
    if total is not None:
        table.add_row(escape(total[0]), f"{total[1]:+.{decimals}f}", style="bold")
    return table


def render_sample(
    heading: str, texts: Sequence[tuple[str, Sequence[Word]]], tables: Sequence[RenderableType], notes: Sequence[str]
) -> Group:
    """One explained sample: its heading, its texts, tables side by side, notes."""
    lines: list[RenderableType] = [Text(heading, style="bold"), Text()] if heading else []
    for name, words in texts:
        lines += [Text(name, style="dim")] if name else []
        scale = [] if all(word.special for word in words) else [render_scale(words)]
        lines += [render_tokens(words), *scale, Text()]
    if tables:
        lines.append(Columns(tables, padding=(0, 6)))
    lines += [Text(f"note: {note}", style="yellow") for note in notes]
    return Group(*lines, Text())


def printed(*lines: RenderableType, console: Console | None = None) -> None:
    """Print to a console; None for standard output."""
    (console or Console()).print(*lines, sep="\n", highlight=False)
