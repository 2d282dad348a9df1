"""Stage 6, lower: forward pass, relevance backward pass and target selection as one functional graph."""

from lrp_fx.lowering.artefacts.save import Artefact, load
from lrp_fx.lowering.blocks.checkpoint import low_memory
from lrp_fx.lowering.joint_graph import check_finite
from lrp_fx.lowering.lowered import Lowered, lower
from lrp_fx.lowering.targets.generation import generate
from lrp_fx.lowering.targets.many import ManyTargets, at_once, batched_sweeper, explain_targets

__all__ = [
    "Artefact",
    "Lowered",
    "ManyTargets",
    "at_once",
    "batched_sweeper",
    "check_finite",
    "explain_targets",
    "generate",
    "load",
    "low_memory",
    "lower",
]
