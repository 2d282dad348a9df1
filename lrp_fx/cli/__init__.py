"""The command line (``lrp-fx``)."""

from lrp_fx.cli.main import app

__all__ = ["app"]
