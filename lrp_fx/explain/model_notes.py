"""Notes on a model, independent of its inputs: where relevance follows values that the model detaches."""

from __future__ import annotations

from lrp_fx.analysis import Facts
from lrp_fx.graph.location import module_path, source_line
from lrp_fx.results.context import Context
from lrp_fx.results.notes import Note


def context_of(facts: Facts) -> Context:
    """The context of all explanations of an analysed graph, with its notes."""
    if not facts.seen_through:
        return Context()
    first = facts.seen_through[0]
    return Context(
        notes=(
            Note(
                "seen through",
                "the model computes its output without gradients (detach, no_grad), which would leave nothing to "
                f"explain, so relevance follows the values; first at {source_line(first)} (module "
                f"'{module_path(first) or '<root>'}'). If detached values should count as constants, convert the part "
                "of the model behind that node.",
            ),
        )
    )
