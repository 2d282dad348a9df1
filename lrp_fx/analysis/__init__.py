"""Stage 2, analysis: linear-time passes that compute facts about the nodes of a captured graph."""

from lrp_fx.analysis.analyse import analyse
from lrp_fx.analysis.facts import Facts, Source

__all__ = [
    "Facts",
    "Source",
    "analyse",
]
