"""Stage 2, analysis: linear-time dataflow passes over a captured graph (reach, origin, statistic).

One walk in graph order computes the facts of each node from those of its operands. Then patterns of several nodes
(``analysis.patterns``) are matched.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import replace

from torch.fx import Graph, Node

from lrp_fx.analysis.advice import advice
from lrp_fx.analysis.attention import find_contractions
from lrp_fx.analysis.facts import Facts, Source
from lrp_fx.analysis.feedback import find_feedback
from lrp_fx.analysis.gates import find_gates
from lrp_fx.analysis.indicators import drop_unread_indicators, keeps_indicators, without_indicators
from lrp_fx.analysis.layers import find_layers
from lrp_fx.analysis.masks import find_masks
from lrp_fx.analysis.products import find_continued
from lrp_fx.analysis.rotary import find_positions
from lrp_fx.analysis.selective import find_selective
from lrp_fx.analysis.shifted import find_shifted
from lrp_fx.analysis.signs import find_signs
from lrp_fx.analysis.softmax import find_softmaxes
from lrp_fx.analysis.sources import Finder
from lrp_fx.analysis.step_sizes import find_step_sizes
from lrp_fx.analysis.systems import find_systems
from lrp_fx.errors import UnknownOpError
from lrp_fx.graph.location import locate
from lrp_fx.graph.operands import Slot, all_slots, declared, is_float
from lrp_fx.operators.table import OpSpec, OpTable, bind

__all__ = ["Facts", "Slot", "Source", "analyse"]


def analyse(graph: Graph, ops: OpTable) -> Facts:
    """Compute the facts of a captured graph.

    Raises:
        UnknownOpError: if relevance reaches an operator that ``ops`` does not declare.
    """
    facts = Facts(ops, masks=find_masks(graph, ops))
    finder = Finder(facts)
    for node in graph.nodes:
        if (source := finder.source(node)) is not None:  # the facts of its table are complete by now
            facts.sources.append(source)
            facts.operands[node] = {}
            facts.root(node)
            continue
        if node.op != "call_function":
            continue
        spec = ops.get(node)
        if spec is None:
            _check_unreached(facts, node)
            continue
        if spec.kind == "constant" or not is_float(node):
            continue
        if ops.form(node) == "detach":
            facts.detached += [node] * any(facts.carries(n) for n in node.all_input_nodes)
            continue
        _check_names(node, spec)
        carrying = {slot: n for slot, n in declared(node, spec).items() if facts.carries(n) and is_float(n)}
        if carrying:
            if keeps_indicators(spec) and all(n in facts.indicators for n in carrying.values()):
                facts.indicators.add(node)
            carrying = without_indicators(facts, spec, carrying)
            if spec.kind == "lookup":  # of a table that carries relevance: it moves rows
                spec = replace(spec, kind="movement")
            facts.specs[node] = spec
            facts.operands[node] = carrying
            _locate(facts, node, spec, carrying.values())
    drop_unread_indicators(graph, facts)
    find_softmaxes(facts)
    find_contractions(facts)
    find_gates(graph, facts)
    find_selective(graph, facts)
    find_step_sizes(facts)
    find_signs(graph, facts)
    find_shifted(facts)
    find_systems(facts)
    find_layers(facts)
    find_feedback(graph, facts)
    find_positions(graph, facts)
    find_continued(graph, facts)
    return facts


def _check_names(node: Node, spec: OpSpec) -> None:
    """Reject a declaration that names no argument of its operator: it would lose relevance silently."""
    if node.target is not operator.getitem and not set(spec.args) & set(bind(node)):
        named = ", ".join(spec.args) or "no operand"
        raise UnknownOpError(
            f"the declaration of {spec.name} names {named}, but the operator's arguments are {', '.join(bind(node))}: "
            f"{locate(node)}.\nCorrect it in the op table or in convert(ops=...)."
        )


def _check_unreached(facts: Facts, node: Node) -> None:
    reached = [slot for slot, n in all_slots(node).items() if facts.carries(n)]
    if reached and is_float(node):
        raise UnknownOpError(
            f"relevance reaches an operator that the op table does not declare: {locate(node)}.\n"
            f"{advice(node, reached)}"
        )


def _locate(facts: Facts, node: Node, spec: OpSpec, operands: Iterable[Node]) -> None:
    """Compute origin, parent and statistic of a node from those of its carrying operands."""
    operands = list(dict.fromkeys(operands))
    facts.root(node)
    if spec.elementwise:
        origins = {facts.origin[n] for n in operands}
        if len(origins) == 1:
            facts.origin[node] = origins.pop()
    if not (spec.elementwise or spec.reduces or spec.kind == "movement"):
        return
    parent = facts.common_ancestor(operands)
    if parent is None:
        return
    facts.descend(node, parent)
    if spec.reduces:
        facts.reduced_from[node] = parent
    elif all(n in facts.reduced_from for n in operands):
        through = facts.common_ancestor([facts.reduced_from[n] for n in operands])
        if through is not None:
            facts.reduced_from[node] = through
