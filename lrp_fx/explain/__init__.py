"""Stage 5, explain: one forward pass and one relevance sweep -> a :class:`lrp_fx.Attribution`."""

from lrp_fx.explain.conditions import Condition
from lrp_fx.explain.sweeper import Sweeper, usable
from lrp_fx.explain.target_types import Contrast, Logit, LogProb, Pixels, Probability, Span, Target

__all__ = [
    "Condition",
    "Contrast",
    "LogProb",
    "Logit",
    "Pixels",
    "Probability",
    "Span",
    "Sweeper",
    "Target",
    "usable",
]
