"""Stage 3, plan: facts and a rule set -> one decision for each node with relevance."""

from lrp_fx.plan.make_plan import Decision, Plan, make_plan
from lrp_fx.plan.why import NodeReason, Verdict, why

__all__ = [
    "Decision",
    "NodeReason",
    "Plan",
    "Verdict",
    "make_plan",
    "why",
]
