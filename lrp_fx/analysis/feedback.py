"""Where what a recurrence carries meets what is new: the sums and layers in front of its nonlinearities.

A step computes tanh(W x + U h). U is applied to what it made of earlier steps: it is a *recurrent weight*. W x and U h
often have opposite signs, and relevance that is shared in proportion to them grows wherever they nearly cancel, at
every step anew. Rule sets can tell these sums from others (role recurrent-sum); a layer applied to x and h side by
side is the same sum, written as one.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts, Layer
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import RECURRENT_LAYER
from lrp_fx.graph.operands import all_slots

RECURRENT_SUM = "recurrent-sum"  #: the role


def find_feedback(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.feedback``, and give layers over an input and a state side by side their role."""
    recurrent = _recurrent_weights(graph, facts)
    if not recurrent:
        return
    facts.fed_back = {node for node, layer in facts.layers.items() if _parameter(node, layer) in recurrent}
    for node in facts.specs:
        operands = list(facts.operands[node].values())
        if any(n in facts.fed_back for n in operands) and _keeps(facts, node, operands):
            facts.fed_back.add(node)
    for node, layer in facts.layers.items():
        if RECURRENT_LAYER.match(before_rules(facts, node)):
            facts.layers[node] = replace(layer, roles=(RECURRENT_SUM, *layer.roles))


def _keeps(facts: Facts, node: Node, operands: list[Node]) -> bool:
    """Whether a node moves, adds, normalizes or weighs what it is given, and is no function of it else."""
    spec = facts.specs[node]
    if spec.kind == "product" and spec.elementwise:
        return all(n in facts.fed_back or n in facts.positive for n in operands)
    return spec.kind in ("movement", "normalization") or (spec.kind == "linear" and spec.elementwise)


def _recurrent_weights(graph: Graph, facts: Facts) -> set[Node]:
    """Parameters that a layer applies to something that a layer made with them."""
    parameters: dict[Node, list[Node]] = {}
    for node, layer in facts.layers.items():
        parameters.setdefault(_parameter(node, layer), []).append(node)
    again = [parameter for parameter, layers in parameters.items() if len(layers) > 1]
    bits = {parameter: 1 << number for number, parameter in enumerate(again)}
    used: dict[Node, int] = {}  # the parameters that a node depends on
    recurrent = set()
    for node in graph.nodes:
        if node in facts.layers:
            layer = facts.layers[node]
            parameter = _parameter(node, layer)
            if used.get(all_slots(node)[layer.input], 0) & bits.get(parameter, 0):
                recurrent.add(parameter)
        used[node] = bits.get(node, 0)
        for operand in node.all_input_nodes:
            used[node] |= used[operand]
    return recurrent


def _parameter(node: Node, layer: Layer) -> Node:
    """The weight of a layer as the model holds it, before it was moved or cast."""
    weight = all_slots(node)[layer.weight]
    while weight.op == "call_function" and len(weight.all_input_nodes) == 1:
        weight = weight.all_input_nodes[0]
    return weight
