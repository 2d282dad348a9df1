"""Stage 1, capture: any ``nn.Module`` and example inputs -> a functional ATen graph that shares its parameters."""

from lrp_fx.capture.capture import ROUTES, capture, failing_node, prepare
from lrp_fx.capture.captured import Captured
from lrp_fx.capture.containers import opened
from lrp_fx.capture.conventions import copied_inputs, is_traced, preserved, unwrapped
from lrp_fx.capture.guards import Shapes
from lrp_fx.capture.lock import TRACING
from lrp_fx.capture.model_state import ModelState, switches
from lrp_fx.capture.signature import Call, free_numbers, read_call

__all__ = [
    "ROUTES",
    "TRACING",
    "Call",
    "Captured",
    "ModelState",
    "Shapes",
    "capture",
    "copied_inputs",
    "failing_node",
    "free_numbers",
    "is_traced",
    "opened",
    "prepare",
    "preserved",
    "read_call",
    "switches",
    "unwrapped",
]
