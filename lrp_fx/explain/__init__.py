"""Stage 5, explain: one forward pass and one relevance sweep -> an :class:`Attribution`."""

from lrp_fx.explain.attribution import Attribution
from lrp_fx.explain.conditions import Condition
from lrp_fx.explain.ledger import Entry, Ledger
from lrp_fx.explain.sweeper import Sweeper, usable
from lrp_fx.explain.target import Contrast, Pixels, Target

__all__ = [
    "Attribution",
    "Condition",
    "Contrast",
    "Entry",
    "Ledger",
    "Pixels",
    "Sweeper",
    "Target",
    "usable",
]
