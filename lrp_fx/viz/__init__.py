"""Views of plain data with one palette: words in a terminal, matplotlib figures, static pages, the viewer."""

from lrp_fx.viz.pages import Panel, Text, fragment, page, write_page
from lrp_fx.viz.terminal import render_scale, render_tokens
from lrp_fx.viz.words import Word, most_relevant, visible

__all__ = [
    "Panel",
    "Text",
    "Word",
    "fragment",
    "most_relevant",
    "page",
    "render_scale",
    "render_tokens",
    "visible",
    "write_page",
]
