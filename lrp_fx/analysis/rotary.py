"""Position tables that multiply a signal: the cosines and sines of rotary embeddings.

They do not depend on the tokens, so they are constants by default. PA-LRP (arXiv:2506.02138) treats them as sources,
one per position; a rule set does so with a rule for the role ``position``.
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
        if op_name(node) in _ANGLES or _is_derived(facts, node, tables):
            tables.add(node)
    roots: dict[Node, Source] = {}
    for node in facts.specs:
        product = before_rules(facts, node)
        if not POSITION_TABLE.match(product):
            continue
        facts.positional[node] = multiplying(product)
        for table in facts.positional[node].values():
            path = _unmoved(facts, table, tables)
            name = f"{module_path(path[-1])} {op_name(_angle(path[-1], tables)).rpartition('.')[2]}".strip()
            roots.setdefault(path[-1], Source(path[-1], path[-1], None, name))
            facts.tabled |= set(path)
    facts.positions = list(roots.values())
    for node in facts.tabled:
        facts.root(node)


def _is_derived(facts: Facts, node: Node, tables: set[Node]) -> bool:
    """Whether ``node`` is a table, moved, cast or scaled, or several tables joined."""
    spec = facts.ops.get(node)
    if spec is None or not (spec.elementwise or spec.kind == "movement"):
        return False
    operands = [n for n in node.all_input_nodes if is_float(n)]
    return spec.kind in ("movement", "linear", "product", "quotient") and bool(operands) and set(operands) <= tables


def _unmoved(facts: Facts, node: Node, tables: set[Node]) -> list[Node]:
    """The path from a table back over movement in the same precision; its end is the table that all layers share."""
    path = [node]
    while True:
        spec, operands = facts.ops.get(node), [n for n in node.all_input_nodes if n in tables]
        moved = spec is not None and spec.kind == "movement" and len(operands) == 1
        if not moved or _precision(operands[0]) is not _precision(node):
            return path
        node = operands[0]
        path.append(node)


def _precision(node: Node) -> torch.dtype:
    """Dtype of a node's value; of several values (a table split in two), that of the first."""
    example = value(node)
    return example[0].dtype if isinstance(example, (tuple, list)) else example.dtype


def _angle(node: Node, tables: set[Node]) -> Node:
    while op_name(node) not in _ANGLES:
        node = next(n for n in node.all_input_nodes if n in tables)
    return node
