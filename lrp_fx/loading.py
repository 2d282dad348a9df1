"""Reading results of every kind: with this imported, all kinds are known by name."""

from lrp_fx.concepts.features import FeatureAttribution
from lrp_fx.pairs.attribution import PairAttribution
from lrp_fx.results import load_result

__all__ = ["FeatureAttribution", "PairAttribution", "load_result"]
