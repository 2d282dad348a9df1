"""Explanations to look at: coloured tokens in the terminal, a heatmap page for the browser."""

from lrp_fx.viz.pages import heatmap_page, token_html, write_page
from lrp_fx.viz.terminal import render_scale, render_tokens
from lrp_fx.viz.words import Word, join_pieces, most_relevant

__all__ = [
    "Word",
    "heatmap_page",
    "join_pieces",
    "most_relevant",
    "render_scale",
    "render_tokens",
    "token_html",
    "write_page",
]
