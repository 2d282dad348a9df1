"""Two readings of ``detach`` in a captured graph: honour it, or see through it.

Honoured, a detached tensor is a constant under every rule set, as for autograd: a straight-through estimator
``x + (q - x).detach()`` passes relevance through x, and a detached statistic is constant. If that leaves an output
without any signal, as in a model that runs under ``no_grad``, the detaches in front of that output are seen through
nevertheless. A detach that is seen through is an alias.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx import Graph, Node

from lrp_fx.analysis.analyse import analyse
from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.operands import is_float
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.table import OpTable

HONOUR, SEE_THROUGH = READINGS = ("honour", "see-through")


def analyse_detached(graph_module: fx.GraphModule, ops: OpTable, reading: str) -> Facts:
    """The facts of a captured graph. Detaches that are seen through are replaced by aliases, in place.

    Raises:
        UnknownOpError: as :func:`analyse`.
    """
    graph = graph_module.graph
    facts = analyse(graph, ops)
    through = facts.detached if reading == SEE_THROUGH else _in_the_way(graph, facts)
    if not through:
        return facts
    if reading == SEE_THROUGH:
        through = [node for node in graph.nodes if ops.form(node) == "detach"]
    for node in through:
        node.target = torch.ops.aten.alias.default
    graph_module.recompile()
    facts = analyse(graph, ops)
    facts.seen_through = [] if reading == SEE_THROUGH else through
    return facts


def _in_the_way(graph: Graph, facts: Facts) -> list[Node]:
    """The detaches in front of outputs without relevance, unless an output with relevance depends on them, too."""
    outputs = [n for n in graph.output_node().all_input_nodes if is_float(n)]
    without = set(upstream(n for n in outputs if not facts.carries(n)))
    others = set(upstream(n for n in outputs if facts.carries(n)))
    return [n for n in graph.nodes if n in without and n not in others and facts.ops.form(n) == "detach"]
