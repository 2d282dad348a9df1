"""The palette of all views: a diverging scale, blue for negative relevance and red for positive, and the themes.

The scale of the light theme is matplotlib's ``RdBu_r`` (ColorBrewer's, safe for colour-blind readers). It is copied
here so that terminals and pages need no matplotlib; :func:`lrp_fx.viz.figures.colour_map` returns it for matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence

from lrp_fx.viz.words import Word

RGB = tuple[int, int, int]

#: theme -> colours of the diverging scale at shares from -1 (against) to 1 (for), evenly spaced
SCALES: dict[str, tuple[RGB, ...]] = {
    "light": (
        (5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
        (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31),
    ),
    "dark": ((86, 160, 233), (34, 36, 42), (240, 90, 92)),
}  # fmt: skip
#: theme -> all colours but those of relevance: page, panel, text, lines, the mark of focus and selection
THEMES: dict[str, dict[str, RGB]] = {
    "light": {
        "page": (246, 246, 248), "panel": (255, 255, 255), "ink": (28, 29, 33), "quiet": (96, 99, 108),
        "line": (214, 216, 222), "mark": (10, 92, 54),
        "note": (122, 75, 0),
    },
    "dark": {
        "page": (20, 21, 25), "panel": (34, 36, 42), "ink": (236, 237, 241), "quiet": (166, 170, 181),
        "line": (74, 77, 87), "mark": (122, 222, 160),
        "note": (240, 190, 110),
    },
}  # fmt: skip
POSITIVE, NEGATIVE = SCALES["light"][-2], SCALES["light"][1]  #: of bars
#: of things without a number (roles, rules): Tol's light scheme, safe for colour-blind readers, under black text
CATEGORIES: tuple[RGB, ...] = (
    (119, 170, 221), (153, 221, 255), (68, 187, 153), (187, 204, 51), (170, 170, 0), (238, 221, 136),
    (238, 136, 102), (255, 170, 187), (221, 221, 221),
)  # fmt: skip


def largest(words: Sequence[Word]) -> float:
    """The magnitude with the full colour: the largest among words that are not special; 1 if all are 0."""
    return max((abs(w.relevance) for w in words if not w.special), default=0.0) or 1.0


def background(share: float, theme: str = "light") -> RGB:
    """Colour of a relevance, which is a share of the largest magnitude, from -1 to 1."""
    stops = SCALES[theme]
    place = (min(max(share, -1.0), 1.0) + 1) / 2 * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    pairs = zip(stops[below], stops[below + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - below)) for a, b in pairs)
    return red, green, blue


def table(theme: str, steps: int = 20) -> list[RGB]:
    """The diverging scale from -1 to 1 as 2 * steps + 1 colours, evenly spaced."""
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


def ink(name: str, theme: str = "light") -> str:
    """A colour of a theme as ``#rrggbb``, for matplotlib."""
    return hexadecimal(THEMES[theme][name])


def hexadecimal(colour: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def css(colour: RGB) -> str:
    """``rgb(r, g, b)``."""
    return f"rgb({', '.join(map(str, colour))})"


def bar_colour(amount: float) -> RGB:
    """The colour of a bar, by its sign."""
    return POSITIVE if amount >= 0 else NEGATIVE
