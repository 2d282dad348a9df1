"""Recurrent sums: the sums of new input and carried state in front of the nonlinearities of a recurrence.

A step computes tanh(W x + U h). U is applied to its own results of earlier steps: it is a *recurrent weight*. W x and
U h often have opposite signs. Where they nearly cancel, proportional shares grow, at every step anew. Therefore these
sums have a role of their own (recurrent-sum). One layer over x and h, concatenated, is such a sum as well.
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
    """Fill ``facts.fed_back``, and give layers over a concatenated input and state the role recurrent-sum."""
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
    """Whether a node only moves, adds, normalizes or weighs its operands."""
    spec = facts.specs[node]
    if spec.kind == "product" and spec.elementwise:
        return all(n in facts.fed_back or n in facts.positive for n in operands)
    return spec.kind in ("movement", "normalization") or (spec.kind == "linear" and spec.elementwise)


def _recurrent_weights(graph: Graph, facts: Facts) -> set[Node]:
    """Parameters of layers whose input depends on a layer with the same parameter."""
    parameters: dict[Node, list[Node]] = {}
    for node, layer in facts.layers.items():
        parameters.setdefault(_parameter(node, layer), []).append(node)
    repeated = [parameter for parameter, layers in parameters.items() if len(layers) > 1]
    bits = {parameter: 1 << number for number, parameter in enumerate(repeated)}
    used: dict[Node, int] = {}  # bits of the parameters that a node depends on
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
    """The weight of a layer, before it was moved or cast: the parameter of the model."""
    weight = all_slots(node)[layer.weight]
    while weight.op == "call_function" and len(weight.all_input_nodes) == 1:
        weight = weight.all_input_nodes[0]
    return weight
