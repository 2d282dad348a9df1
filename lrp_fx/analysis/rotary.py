"""Position tables that multiply a signal: rotary cosines and sines, which say where a token is.

They do not depend on the tokens, so relevance does not reach them by itself. PA-LRP (arXiv:2506.02138) counts them as
inputs of their own, one per position; a rule set asks for that with the role ``position``.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from lrp_fx.analysis.conditions.positions import multiplying
from lrp_fx.analysis.facts import Facts, Source
from lrp_fx.analysis.matching import before_rules
from lrp_fx.analysis.patterns import POSITION_TABLE
from lrp_fx.graph.location import module_path
from lrp_fx.graph.operands import is_float, value
from lrp_fx.operators.table import op_name

_ANGLES = ("aten.cos", "aten.sin", "aten.polar")


def find_positions(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.tables``, ``facts.positions`` and ``facts.positional`` (products -> the slots of tables)."""
    tables = facts.tables
    for node in graph.nodes:
        if node.op != "call_function" or facts.carries(node) or not is_float(node):
            continue
        if op_name(node) in _ANGLES or _made_of(facts, node, tables):
            tables.add(node)
    roots: dict[Node, Source] = {}
    for node in facts.specs:
        product = before_rules(facts, node)
        if not POSITION_TABLE.match(product):
            continue
        facts.positional[node] = multiplying(product)
        for table in facts.positional[node].values():
            way = _unmoved(facts, table, tables)
            name = f"{module_path(way[-1])} {op_name(_angle(way[-1], tables)).rpartition('.')[2]}".strip()
            roots.setdefault(way[-1], Source(way[-1], way[-1], None, name))
            facts.tabled |= set(way)
    facts.positions = list(roots.values())
    for node in facts.tabled:
        facts.root(node)


def _made_of(facts: Facts, node: Node, tables: set[Node]) -> bool:
    """Whether ``node`` is a table that was moved, cast or scaled, or several of them joined."""
    spec = facts.ops.get(node)
    if spec is None or not (spec.elementwise or spec.kind == "movement"):
        return False
    operands = [n for n in node.all_input_nodes if is_float(n)]
    return spec.kind in ("movement", "linear", "product", "quotient") and bool(operands) and set(operands) <= tables


def _unmoved(facts: Facts, node: Node, tables: set[Node]) -> list[Node]:
    """From a table back to what it was before it was moved in its own precision: every layer reads that one."""
    way = [node]
    while True:
        spec, operands = facts.ops.get(node), [n for n in node.all_input_nodes if n in tables]
        moved = spec is not None and spec.kind == "movement" and len(operands) == 1
        if not moved or _precision(operands[0]) is not _precision(node):
            return way
        node = operands[0]
        way.append(node)


def _precision(node: Node) -> torch.dtype:
    """Precision of a node's value; of several (a table split in two), that of the first."""
    example = value(node)
    return example[0].dtype if isinstance(example, (tuple, list)) else example.dtype


def _angle(node: Node, tables: set[Node]) -> Node:
    while op_name(node) not in _ANGLES:
        node = next(n for n in node.all_input_nodes if n in tables)
    return node
