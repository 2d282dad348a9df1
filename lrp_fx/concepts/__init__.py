"""Concepts: what neurons, heads and dictionary features do, and how relevance flows between them."""

from lrp_fx.concepts.dictionary import (
    Dictionary,
    DictionaryError,
    FeatureAttribution,
    FeatureExplainer,
    explain_features,
)
from lrp_fx.concepts.explained_run import ExplainedRun
from lrp_fx.concepts.flow import prune, relevance_flow
from lrp_fx.concepts.global_view import GlobalView, global_view
from lrp_fx.concepts.graph_json import to_graph_json
from lrp_fx.concepts.maximisation import Collection, Hit, Ranking, Reference, Sample, collect, reference
from lrp_fx.concepts.prototypes import ClassPrototypes, Prototypes, prototypes
from lrp_fx.concepts.spray import Clusters, spray
from lrp_fx.viz.viewer.graph import view_circuit

__all__ = [
    "ClassPrototypes",
    "Clusters",
    "Collection",
    "Dictionary",
    "DictionaryError",
    "ExplainedRun",
    "FeatureAttribution",
    "FeatureExplainer",
    "GlobalView",
    "Hit",
    "Prototypes",
    "Ranking",
    "Reference",
    "Sample",
    "collect",
    "explain_features",
    "global_view",
    "prototypes",
    "prune",
    "reference",
    "relevance_flow",
    "spray",
    "to_graph_json",
    "view_circuit",
]
