"""Stage 5, explain: one forward pass and one relevance sweep -> a :class:`lrp_fx.Attribution`."""

from lrp_fx.explain.conditions import Condition
from lrp_fx.explain.sweeper import Sweeper, usable
from lrp_fx.explain.target import Contrast, Pixels, Target

__all__ = [
    "Condition",
    "Contrast",
    "Pixels",
    "Sweeper",
    "Target",
    "usable",
]
