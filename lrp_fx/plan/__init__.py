"""Stage 3, plan: facts and a rule set -> one decision per node that relevance flows through."""

from lrp_fx.plan.make_plan import Decision, Plan, make_plan

__all__ = [
    "Decision",
    "Plan",
    "make_plan",
]
