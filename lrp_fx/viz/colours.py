"""One diverging colour scale for all views: blue for negative relevance, white for none, red for positive."""

from __future__ import annotations

from collections.abc import Sequence

from lrp_fx.viz.words import Word

_POSITIVE, _NEGATIVE = (178, 24, 43), (33, 102, 172)  # the ends of ColorBrewer's RdBu, safe for colour-blind readers

RGB = tuple[int, int, int]


def largest(words: Sequence[Word]) -> float:
    """The magnitude that gets the full colour, among words that are coloured; 1 where there is no relevance at all."""
    return max((abs(w.relevance) for w in words if not w.special), default=0.0) or 1.0


def background(share: float) -> RGB:
    """Colour of a relevance given as a share of the largest magnitude, from -1 to 1."""
    end = _POSITIVE if share >= 0 else _NEGATIVE
    weight = min(abs(share), 1.0)
    red, green, blue = (round(255 + (e - 255) * weight) for e in end)
    return red, green, blue


def foreground(colour: RGB) -> RGB:
    """Black or white, whichever reads better on ``colour`` (WCAG relative luminance)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def css(colour: RGB) -> str:
    """``rgb(r, g, b)``."""
    return f"rgb({', '.join(map(str, colour))})"
