"""Stage 2, analysis: facts about the nodes of a captured graph, computed in linear time."""

from lrp_fx.analysis.analyse import analyse
from lrp_fx.analysis.facts import Facts, Source

__all__ = [
    "Facts",
    "Source",
    "analyse",
]
