"""Models with their explanations in folders and on hubs: load what ``xmodel.save_pretrained`` wrote, model cards."""

from lrp_fx.hub.card import card_section
from lrp_fx.hub.folder import load_folder
from lrp_fx.hub.pretrained import from_pretrained

__all__ = ["card_section", "from_pretrained", "load_folder"]
