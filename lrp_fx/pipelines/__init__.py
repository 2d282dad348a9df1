"""Tasks by name: raw input in, answer and attribution out."""

from lrp_fx.pipelines.explained import Explained
from lrp_fx.pipelines.pipeline import Pipeline, pipeline
from lrp_fx.pipelines.tasks import TASKS

__all__ = ["TASKS", "Explained", "Pipeline", "pipeline"]
