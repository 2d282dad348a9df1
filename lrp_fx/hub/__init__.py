"""Models saved with their rule sets, entry points of hubs, sections and evaluation entries of model cards."""

from lrp_fx.hub.card import card_section
from lrp_fx.hub.evaluation import eval_entries, eval_results
from lrp_fx.hub.folder import load_folder
from lrp_fx.hub.pretrained import from_pretrained
from lrp_fx.hub.torch_hub import explainable

__all__ = ["card_section", "eval_entries", "eval_results", "explainable", "from_pretrained", "load_folder"]
