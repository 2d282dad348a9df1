"""Statistics: is a tensor a norm, a spread or a mean of another one, which it scales?"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.operators.table import bind


def is_statistic_of(facts: Facts, statistic: Node, signal: Node) -> bool:
    """Whether ``signal`` is an affine image of a tensor on which ``statistic`` depends only through reductions.

    Their product or quotient is then a normalization: RMSNorm, LayerNorm, cosine attention, in any spelling. A norm may
    also be that of a factor of the signal: (q k) / |q| is (q / |q|) k.
    """
    if statistic not in facts.reduced_from or statistic is signal:
        return False
    if _depends_on(facts, statistic, signal):
        return True
    return any(_depends_on(facts, statistic, n) for n in _factors(facts, signal)) and _is_norm(facts, statistic)


def _depends_on(facts: Facts, statistic: Node, signal: Node) -> bool:
    through = facts.reduced_from[statistic]
    ancestor = facts.common_ancestor((signal, through))
    if ancestor is None or not facts.is_affine_image(signal, ancestor):
        return False
    of_signal, of_statistic = facts.parts_of(ancestor, signal), facts.parts_of(ancestor, through)
    if of_signal and of_statistic and not of_signal & of_statistic:  # queries and keys of one layer, say
        return False
    reduced = facts.reduced_from.get(signal)  # the signal itself must not be a statistic of the same tensor
    return reduced is None or facts.depth[reduced] < facts.depth[ancestor]


def _factors(facts: Facts, node: Node) -> Sequence[Node]:
    """The carrying factors of a product without added terms, also moved and scaled."""
    while node in facts.specs:
        spec, operands = facts.specs[node], list(facts.operands[node].values())
        multiplies = spec.kind == "product" and not any(bind(node).get(name) is not None for name in spec.terms)
        if multiplies and (len(operands) > 1 or not spec.elementwise):
            return operands
        if len(operands) != 1 or not (multiplies or spec.kind == "movement"):
            return ()
        (node,) = operands
    return ()


def _is_norm(facts: Facts, node: Node) -> bool:
    """Whether a statistic is a norm or a spread: a reduction of squares or magnitudes, and functions of it alone."""
    while len(operands := dict.fromkeys(facts.operands.get(node, {}).values())) == 1:
        spec, (operand,) = facts.specs[node], operands
        if spec.reduces:
            return spec.kind == "homogeneous" or _is_square(facts, operand)
        if (
            spec.kind not in ("movement", "homogeneous", "linear", "product")
            and spec.extra.get("positive") != "operand"
        ):
            return False
        node = operand
    return False


def _is_square(facts: Facts, node: Node) -> bool:
    """Whether a tensor is a power or magnitude of another one, or its product with itself."""
    spec, slots = facts.specs.get(node), facts.operands.get(node, {})
    squared = len(slots) == 2 and len(set(slots.values())) == 1
    return spec is not None and (spec.kind == "homogeneous" or (spec.kind == "product" and squared))
