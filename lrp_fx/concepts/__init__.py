"""Concepts: what neurons, heads and dictionary features do, and how relevance flows between them."""

from lrp_fx.concepts.dictionary import (
    Dictionary,
    DictionaryError,
    FeatureAttribution,
    FeatureExplainer,
    explain_features,
)
from lrp_fx.concepts.flow import prune, relevance_flow
from lrp_fx.concepts.maximisation import Collection, Hit, Ranking, Reference, Sample, collect, reference

__all__ = [
    "Collection",
    "Dictionary",
    "DictionaryError",
    "FeatureAttribution",
    "FeatureExplainer",
    "Hit",
    "Ranking",
    "Reference",
    "Sample",
    "collect",
    "explain_features",
    "prune",
    "reference",
    "relevance_flow",
]
