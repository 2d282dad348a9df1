"""Coloured tokens in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from lrp_fx.viz.colours import background, css, foreground, largest
from lrp_fx.viz.words import Word


def _style(share: float) -> Style:
    colour = background(share)
    return Style(bgcolor=css(colour).replace(" ", ""), color=css(foreground(colour)).replace(" ", ""))


def render_tokens(words: Sequence[Word]) -> Text:
    """Words on backgrounds from blue (negative) through white to red (positive); special tokens dimmed."""
    scale = largest(words)
    text = Text()
    for word in words:
        if word.special:
            text.append(f"{word.text or '·'} ", style="dim")
            continue
        text.append(f" {word.text} ", style=_style(word.relevance / scale))
    return text


def render_scale(words: Sequence[Word]) -> Text:
    """A legend for :func:`render_tokens`."""
    scale = largest(words)
    text = Text(f"{-scale:+.3g} ", style="dim")
    for step in range(-6, 7):
        text.append("  ", style=_style(step / 6))
    return text.append(f" {scale:+.3g}", style="dim")
