"""A page to look at results with: one html file without server and network. It draws plain data (:mod:`.schema`)."""

from lrp_fx.viz.viewer.page import viewer_page
from lrp_fx.viz.viewer.schema import SCHEMA, View

__all__ = ["SCHEMA", "View", "viewer_page"]
