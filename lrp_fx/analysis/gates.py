"""Gates and recurrences: factors that only weigh a signal, and signals that are states carried from step to step.

A uniform rule halves relevance at every product. In a recurrence c' = f c + i g it would decay as 2^-T over T steps,
whatever the model does. So products of a recurrence have another role than those of gated linear units:

- a tensor is *positive* if it is the output of a nonnegative function (sigmoid, exp, softplus, softmax: as declared in
  the op table), or is computed from such outputs and constants by sums, products, powers and movement. The negative of
  a positive tensor weighs a signal as well and counts as positive; a difference of two positive tensors does not;
- a *decay* is a positive tensor with an exponential in it: in any product with a signal it only weighs the signal;
- a product of a positive factor and a signal is *recurrent* if the signal is a state: a sum with such a product in it,
  carried on by movement, by functions of one tensor and by weights that are applied repeatedly. Products that go into
  such a sum are recurrent, too.
"""

from __future__ import annotations

import math

from torch.fx import Graph, Node

from lrp_fx.analysis.conditions.recurrences import has_a_signal, has_a_weight, multiplies_signals
from lrp_fx.analysis.facts import Facts
from lrp_fx.analysis.matching import Candidate, before_rules
from lrp_fx.analysis.patterns import RECURRENCE
from lrp_fx.graph.operands import slots
from lrp_fx.operators.table import OpSpec, bind, coefficients

_CARRYING_ON = ("movement", "linear", "nonlinearity", "homogeneous", "selection", "normalization")


def find_gates(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.positive``, ``facts.decays``, ``facts.states`` and ``facts.recurrent`` in one walk."""
    gated: set[Node] = set()  # products of a positive factor and a signal, and nodes that carry them on
    signs: dict[Node, int] = {}
    for node in graph.nodes:
        spec = facts.specs.get(node)
        if spec is None:
            continue
        operands = list(facts.operands[node].values())
        signs[node] = _sign(facts, node, spec, operands, signs)
        if signs[node]:
            facts.positive.add(node)
            if _is_decay(facts, node, spec, operands):
                facts.decays.add(node)
            continue
        product = before_rules(facts, node)
        recurrence = RECURRENCE.match(product)
        if recurrence or _is_gated(product):
            gated.add(node)
        if recurrence == "weighs a state":
            _mark(facts, [node], gated)
        elif recurrence:
            facts.recurrent.add(node)
        elif carries_on(node, spec, operands):
            if any(n in gated for n in operands):
                gated.add(node)
            if any(n in facts.states for n in operands) or (adds(node, spec) and node in gated):
                facts.states.add(node)


def _is_decay(facts: Facts, node: Node, spec: OpSpec, operands: list[Node]) -> bool:
    """Whether a positive tensor has an exponential in it: neither 1 + exp, as in a sigmoid, nor a softmax."""
    if node in facts.manual_softmax:
        return False
    shifted = spec.kind == "linear" and spec.elementwise and len(operands) < 2 <= len(spec.args)
    return bool(spec.extra.get("decay")) or (not shifted and any(n in facts.decays for n in operands))


def _is_gated(product: Candidate) -> bool:
    """Whether a node is an elementwise product of a positive factor and a signal."""
    return all(condition.holds(product) for condition in (multiplies_signals, has_a_weight, has_a_signal))


def _is_product(spec: OpSpec) -> bool:
    return spec.kind in ("product", "quotient") and spec.elementwise


def _sign(facts: Facts, node: Node, spec: OpSpec, operands: list[Node], signs: dict[Node, int]) -> int:
    """1 or -1 if all entries of a node have that sign, else 0."""
    declared = spec.extra.get("positive")
    if declared is True:
        return 1
    operand_signs = [signs.get(n, 0) for n in operands]
    if 0 in operand_signs:
        return 0
    if declared:
        return operand_signs[0] if len(set(operand_signs)) == 1 else 0
    if spec.terms or not (spec.elementwise or spec.kind in ("movement", "linear", "product")):
        return 0
    if spec.kind == "linear" and spec.elementwise:
        return _sign_of_sum(facts, node, signs)
    if spec.kind in ("product", "quotient"):
        literals = [a for a in node.args if isinstance(a, (int, float))]
        return (
            math.prod([*operand_signs, *(-1 if a < 0 else 1 for a in literals)])
            if _no_table(node, spec, operands)
            else 0
        )
    if spec.kind == "homogeneous":  # of a positive operand every power is positive
        return 1
    keeps_sign = spec.kind in ("movement", "selection") or (spec.kind == "linear" and spec.reduces)
    return operand_signs[0] if keeps_sign and len(set(operand_signs)) == 1 else 0


def _sign_of_sum(facts: Facts, node: Node, signs: dict[Node, int]) -> int:
    """The sign of a sum; 0 for a difference of positive tensors.

    A constant minus a positive tensor counts as positive, as in 1 - z, the counterpart of a gate z. A positive tensor
    minus a constant, as in 2 sigmoid(x) - 1, has no fixed sign.
    """
    bound = bind(node)
    weights = {key: -1 if factor < 0 else 1 for key, factor in coefficients(node, facts.specs[node]).items()}
    carried = {k: v for k, v in weights.items() if isinstance(bound[k], Node) and facts.carries(bound[k])}
    total = {sign * signs[bound[k]] for k, sign in carried.items()}
    constants = {k: sign for k, sign in weights.items() if k not in carried}
    if len(total) != 1:
        return 0
    for key, sign in constants.items():
        value = bound[key]
        direction = sign * (-1 if isinstance(value, (int, float)) and value < 0 else 1)
        if direction == -1:
            return -1 if total == {-1} else 0
        total = {1}
    return total.pop()


def _no_table(node: Node, spec: OpSpec, operands: list[Node]) -> bool:
    """Whether every factor is among ``operands``: a constant weight in a contraction has entries of both signs."""
    return spec.kind != "product" or spec.elementwise or len(slots(node, spec.args)) == len(operands)


def adds(node: Node, spec: OpSpec) -> bool:
    """Whether a node is a sum of several tensors."""
    return spec.kind == "linear" and spec.elementwise and len(slots(node, spec.args)) > 1


def carries_on(node: Node, spec: OpSpec, operands: list[Node]) -> bool:
    """Whether ``node`` carries a state on: not by a weight that is applied only once."""
    if _is_product(spec):
        return len(operands) == 1
    if spec.kind == "product" and len(operands) == 1:
        return any(_applied_again(n) for n in slots(node, spec.args).values() if n is not operands[0])
    return spec.kind in _CARRYING_ON and (spec.elementwise or spec.kind != "linear")


def _applied_again(weight: Node) -> bool:
    while weight.op == "call_function" and len(weight.users) == 1 and len(weight.all_input_nodes) == 1:
        weight = weight.all_input_nodes[0]
    return weight.op == "get_attr" and len(weight.users) > 1


def _mark(facts: Facts, stack: list[Node], gated: set[Node]) -> None:
    """Mark a recurrent product, and the products that go into its state."""
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen or node not in gated:
            continue
        seen.add(node)
        spec = facts.specs[node]
        if _is_product(spec) and len(facts.operands[node]) > 1:
            if node in facts.recurrent and len(seen) > 1:
                continue
            facts.recurrent.add(node)
        stack += facts.operands[node].values()
