"""Reading results of every kind: the imports register all kinds by name."""

from lrp_fx.concepts.features import FeatureAttribution
from lrp_fx.pairs.attribution import PairAttribution
from lrp_fx.results import load_result

__all__ = ["FeatureAttribution", "PairAttribution", "load_result"]
