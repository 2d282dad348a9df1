"""Written-out softmaxes: all their nodes keep the plain gradient, which together is that of the softmax."""

from __future__ import annotations

from torch.fx import Node

from lrp_fx.analysis.conditions.softmax import (
    combination_of_exponentials,
    find_mixture,
    fraction,
    is_exponential,
    region,
    subtrahends,
    unmoved,
)
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, before_rules
from lrp_fx.analysis.patterns import SOFTMAX_WRITTEN_OUT
from lrp_fx.analysis.statistics import is_statistic_of


def find_softmaxes(facts: Facts) -> None:
    """Fill ``facts.manual_softmax``, ``facts.softmaxes``, ``facts.log_softmax``, ``facts.log_sum_exp`` and
    ``facts.mixing``."""
    for node in facts.specs:
        candidate = before_rules(facts, node)
        variant = SOFTMAX_WRITTEN_OUT.match(candidate)
        if variant is not None:
            _enter(candidate, variant)


def _enter(candidate: Candidate, variant: str) -> None:
    facts, node = candidate.facts, candidate.node
    within = {node}
    if variant in ("exponential over its total", "logarithm of a total", "mixture over its total"):
        within |= region(candidate)
    if variant == "exponential over its total":
        numerator, _, _ = fraction(candidate)  # type: ignore[misc]
        combination = combination_of_exponentials(facts, numerator)
        facts.softmaxes[node] = max(combination.exponentials)  # type: ignore[union-attr]
    elif variant == "mixture over its total":
        mixing = find_mixture(candidate)
        assert mixing is not None
        within -= set(mixing.contractions)
        numerator, *_ = fraction(candidate)  # type: ignore[misc]
        slots = candidate.carrying.items()
        mixing.slots[node] = next(slot for slot, n in slots if n is not numerator)
        chain = {n for n in mixing.inside if n in mixing.slots} - set(mixing.contractions)
        within -= mixing.inside - mixing.weights - chain
        facts.mixing |= dict.fromkeys((*chain, node), mixing)
    elif variant == "logarithm of a total":
        combination = combination_of_exponentials(facts, candidate.first)
        facts.log_sum_exp[node] = frozenset(combination.exponentials)  # type: ignore[union-attr]
    elif variant == "subtrahend added back":
        logarithms = (facts.log_sum_exp.get(unmoved(facts, n)) for n in candidate.carrying.values())
        facts.log_sum_exp[node] = next(total for total in logarithms if total is not None)
    elif variant in ("logarithm of a softmax", "less its log-sum-exp"):
        facts.log_softmax.add(node)
    facts.manual_softmax |= {n for n in within if facts.specs[n].kind != "movement"}
    exponentials = [n for n in within if is_exponential(facts, n)]
    common = set.intersection(*(subtrahends(facts, n) for n in exponentials)) if len(exponentials) > 1 else set()
    facts.manual_softmax |= {shift for n in exponentials if (shift := _shift(facts, n, bool(common))) is not None}


def _shift(facts: Facts, exponential: Node, common: bool) -> Node | None:
    """The subtraction of a maximum, or of another statistic, whose only reader is ``exponential``; None for others.

    Args:
        common: whether the same tensor is subtracted from the arguments of several exponentials.
    """
    (argument,) = facts.operands[exponential].values()
    spec, operands = facts.specs.get(argument), list(facts.operands[argument].values())
    if spec is None or spec.kind != "linear" or not spec.elementwise or set(argument.users) != {exponential}:
        return None
    detached = len(operands) == 1 and any(
        facts.ops.form(unmoved(facts, n)) == "detach" for n in argument.all_input_nodes
    )
    statistic = len(operands) == 2 and is_statistic_of(facts, operands[1], operands[0])
    return argument if detached or statistic or (common and len(operands) == 2) else None
