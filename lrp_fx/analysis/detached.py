"""What the model's author held constant, and whether it is: two readings of a captured graph.

Honoured, a ``detach`` is a constant under every rule set, as it is to autograd: a straight-through estimator
``x + (q - x).detach()`` hands on relevance through x, and a statistic that is detached is one. Where that leaves an
output without any signal, as in a model that runs under ``no_grad``, what stands in its way is seen through. Seen
through, a ``detach`` is an alias: what a node is follows from the values it computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx
from torch.fx import Graph, Node

from lrp_fx.analysis.analyse import analyse
from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.operands import is_float
from lrp_fx.operators.table import OpTable

HONOUR, SEE_THROUGH = READINGS = ("honour", "see-through")


def analyse_detached(graph_module: fx.GraphModule, ops: OpTable, reading: str) -> Facts:
    """The facts of a captured graph; what is seen through is an alias in it from now on.

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
    """What detaches the signals of outputs that carry none, and is read for no output that carries one."""
    outputs = [n for n in graph.output_node().all_input_nodes if is_float(n)]
    without = _behind(n for n in outputs if not facts.carries(n))
    others = _behind(n for n in outputs if facts.carries(n))
    return [n for n in graph.nodes if n in without and n not in others and facts.ops.form(n) == "detach"]


def _behind(nodes: Iterable[Node]) -> set[Node]:
    """Nodes with all that they are computed from."""
    stack, seen = list(nodes), set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return seen
