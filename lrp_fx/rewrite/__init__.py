"""Stage 4, rewrite: carry out the decisions of a plan; the forward pass stays the same, bit by bit."""

from lrp_fx.rewrite.rewrite import OWNER, Rewritten, rewrite

__all__ = [
    "OWNER",
    "Rewritten",
    "rewrite",
]
