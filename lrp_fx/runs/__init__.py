"""Whole data sets: rows in, Parquet shards of explanations out, in batches of one length, on one machine or many."""

from lrp_fx.runs.explainer import Explainer
from lrp_fx.runs.rows import COLUMNS
from lrp_fx.runs.run import Run, run

__all__ = ["COLUMNS", "Explainer", "Run", "run"]
