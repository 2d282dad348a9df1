"""Whole data sets: rows in, Parquet shards of explanations out, in batches of texts of similar length."""

from lrp_fx.runs.explainer import COLUMNS, Explainer
from lrp_fx.runs.run import Run, run

__all__ = ["COLUMNS", "Explainer", "Run", "run"]
