"""``python -m lrp_fx.cli``."""

from lrp_fx.cli.main import app

app()
