"""Concepts: what neurons, heads and dictionary features do, and how relevance flows between them."""

from lrp_fx.concepts.dictionary import (
    Dictionary,
    DictionaryError,
    FeatureAttribution,
    FeatureExplainer,
    explain_features,
)
from lrp_fx.concepts.flow import prune, relevance_flow
from lrp_fx.concepts.graph_json import to_graph_json
from lrp_fx.concepts.maximisation import Collection, Hit, Ranking, Reference, Sample, collect, reference
from lrp_fx.viz.viewer.graph import view_circuit

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
    "to_graph_json",
    "view_circuit",
]
