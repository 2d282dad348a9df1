"""The viewer: one HTML file without server and network, which draws plain data (:mod:`.schema`)."""

from lrp_fx.viz.viewer.page import viewer_page
from lrp_fx.viz.viewer.schema import SCHEMA, View

__all__ = ["SCHEMA", "View", "viewer_page"]
