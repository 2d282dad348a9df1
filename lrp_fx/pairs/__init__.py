"""Relevance of pairs of features for the similarity of two inputs (BiLRP, Eberle et al. 2020, arXiv:2003.05431)."""

from lrp_fx.pairs.attribution import PairAttribution
from lrp_fx.pairs.embedding import Output, first_token, last_token, mean_pooling
from lrp_fx.pairs.explain_pairs import explain_pairs
from lrp_fx.pairs.pictures import draw_connections, draw_pairs, pairs_page
from lrp_fx.pairs.table import Pair

__all__ = [
    "Output",
    "Pair",
    "PairAttribution",
    "draw_connections",
    "draw_pairs",
    "explain_pairs",
    "first_token",
    "last_token",
    "mean_pooling",
    "pairs_page",
]
