"""Step sizes of recurrences: the tensors by which a state space model weighs its inputs and makes its decays.

In h' = exp(d A) h + d B x the step size d, a softplus, says how much of x is written, and how much of h is forgotten.
It is recognised as a positive tensor that stands in the exponent of a decay and multiplies something else, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from lrp_fx.analysis.conditions.selective import behind
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.products import Product
from lrp_fx.graph.reach import upstream


def find_step_sizes(facts: Facts) -> None:
    """Fill ``facts.step_sizes``: positive tensors that exponents of decays are products and sums of."""
    exponents = [n for decay in facts.decays for n in facts.operands[decay].values() if n not in facts.decays]

    def combined(node: Node) -> Iterable[Node]:
        spec = facts.specs.get(node)
        if spec is None:
            return ()
        combines = spec.kind in ("movement", "linear", "selection") or (spec.kind == "product" and spec.elementwise)
        return facts.operands[node].values() if combines else ()

    facts.step_sizes = facts.positive.intersection(upstream(exponents, combined))


def weighs_by_step_sizes(facts: Facts, product: Product) -> bool:
    """Whether the factors of a product that only weigh the others are all step sizes."""
    weights = [factor for group in product.groups.values() if group.positive for factor in group.factors]
    return all(behind(facts, factor) in facts.step_sizes for factor in weights)
