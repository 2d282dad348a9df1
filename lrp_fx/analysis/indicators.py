"""Rows of zeros and a one: a lookup that is spelled as a product with the table.

``one_hot(i, n) @ table`` reads rows as ``table[i]`` does, so it is held to the same: of a table that is a constant, the
rows are what the output knows of i, and i is a source; rows of a table that carries relevance are that table, moved.
In a product with a signal, what only indicates is therefore a constant.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, OpTable, bind, op_name


def keeps(spec: OpSpec) -> bool:
    """Whether images of rows that indicate still do: moved, cast, weighed, counted, one entry at a time."""
    alone = spec.kind in ("linear", "product", "quotient") and (spec.elementwise or spec.reduces)
    return spec.kind == "movement" or alone


def begins(node: Node, spec: OpSpec, ops: OpTable) -> bool:
    """Whether ``node`` makes such rows: of a code for every value, or picked from an identity matrix."""
    named = spec.extra.get("picks")
    if named is None or spec.extra.get("entrywise"):
        return False
    tables = [bind(node).get(name) for name in spec.args]
    return not tables or all(isinstance(table, Node) and _is_identity(table, ops) for table in tables)


def _is_identity(table: Node, ops: OpTable) -> bool:
    while ops.form(table) in ("copy", "cast") and table.all_input_nodes:
        table = table.all_input_nodes[0]
    return op_name(table) == "aten.eye"


def signals(facts: Facts, spec: OpSpec, carrying: dict[Slot, Node]) -> dict[Slot, Node]:
    """Of the carrying operands of a node those that it is a function of: not what only picks from the others."""
    if spec.kind not in ("product", "quotient"):
        return carrying
    return {slot: n for slot, n in carrying.items() if n not in facts.indicators} or carrying


def forget_unread(graph: Graph, facts: Facts) -> None:
    """An indicator that does nothing but pick from signals carries no relevance, and is no source."""
    read = {n for node in graph.find_nodes(op="output") for n in node.all_input_nodes}
    unread: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in facts.indicators and node in facts.operands and node not in read:
            unread.add(node)
        else:
            read.update(facts.operands.get(node, {}).values())
    for node in unread:
        del facts.operands[node]
        facts.specs.pop(node, None)
    if unread:
        facts.sources = [source for source in facts.sources if source.node not in unread]
