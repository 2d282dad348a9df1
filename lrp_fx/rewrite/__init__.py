"""Stage 4, rewrite: every decision of a plan becomes a change of the graph that keeps its forward pass."""

from lrp_fx.rewrite.rewrite import OWNER, Rewritten, rewrite

__all__ = [
    "OWNER",
    "Rewritten",
    "rewrite",
]
