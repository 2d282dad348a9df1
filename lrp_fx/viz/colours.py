"""The one palette of all views: a diverging scale, blue for negative relevance and red for positive; inks of themes."""

from __future__ import annotations

from collections.abc import Sequence

from lrp_fx.viz.words import Word

_POSITIVE, _NEGATIVE = (178, 24, 43), (33, 102, 172)  # the ends of ColorBrewer's RdBu, safe for colour-blind readers

RGB = tuple[int, int, int]

#: theme -> ends (against, for) and middle of the diverging scale
_SCALES: dict[str, tuple[RGB, RGB, RGB]] = {
    "light": (_NEGATIVE, (255, 255, 255), _POSITIVE),
    "dark": ((86, 160, 233), (34, 36, 42), (240, 90, 92)),
}
#: theme -> what is not relevance: pages, panels, text, lines, the mark of what has the focus or is chosen
THEMES: dict[str, dict[str, RGB]] = {
    "light": {
        "page": (246, 246, 248), "panel": (255, 255, 255), "ink": (28, 29, 33), "quiet": (96, 99, 108),
        "line": (214, 216, 222), "mark": (10, 92, 54),
    },
    "dark": {
        "page": (20, 21, 25), "panel": (34, 36, 42), "ink": (236, 237, 241), "quiet": (166, 170, 181),
        "line": (74, 77, 87), "mark": (122, 222, 160),
    },
}  # fmt: skip


def largest(words: Sequence[Word]) -> float:
    """The magnitude that gets the full colour, among words that are coloured; 1 where there is no relevance at all."""
    return max((abs(w.relevance) for w in words if not w.special), default=0.0) or 1.0


def background(share: float, theme: str = "light") -> RGB:
    """Colour of a relevance given as a share of the largest magnitude, from -1 to 1."""
    against, middle, in_favour = _SCALES[theme]
    end = in_favour if share >= 0 else against
    weight = min(abs(share), 1.0)
    red, green, blue = (round(m + (e - m) * weight) for m, e in zip(middle, end, strict=True))
    return red, green, blue


def table(theme: str, steps: int = 20) -> list[RGB]:
    """The diverging scale as 2 * steps + 1 colours: from -1 over 0, in the middle, to 1."""
    return [background(step / steps, theme) for step in range(-steps, steps + 1)]


def foreground(colour: RGB) -> RGB:
    """Black or white, whichever reads better on ``colour``."""
    return (0, 0, 0) if luminance(colour) > 0.179 else (255, 255, 255)


def luminance(colour: RGB) -> float:
    """Relative luminance as WCAG 2 defines it, from 0 (black) to 1 (white)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: RGB, second: RGB) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it, from 1 to 21; text needs 4.5, marks need 3."""
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def css(colour: RGB) -> str:
    """``rgb(r, g, b)``."""
    return f"rgb({', '.join(map(str, colour))})"
