"""Models saved with their rule sets (``xmodel.save_pretrained``): loading, and sections of model cards."""

from lrp_fx.hub.card import card_section
from lrp_fx.hub.folder import load_folder
from lrp_fx.hub.pretrained import from_pretrained

__all__ = ["card_section", "from_pretrained", "load_folder"]
