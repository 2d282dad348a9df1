"""Indicators (one-hot rows): a lookup written as a product with the table.

``one_hot(i, n) @ table`` is ``table[i]``, so relevance is the same. If the table is a constant, i is a source: the
output depends on i through the rows. Rows of a table that carries relevance are that table, moved. So in a product with
a signal an indicator is a constant.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, OpTable, bind, op_name


def keeps_indicators(spec: OpSpec) -> bool:
    """Whether an operator turns indicators into indicators: movement, or a cast, weight or count per entry."""
    entrywise = spec.kind in ("linear", "product", "quotient") and (spec.elementwise or spec.reduces)
    return spec.kind == "movement" or entrywise


def creates_indicators(node: Node, spec: OpSpec, ops: OpTable) -> bool:
    """Whether ``node`` creates indicators: a one-hot code, or rows of an identity matrix."""
    named = spec.extra.get("picks")
    if named is None or spec.extra.get("entrywise"):
        return False
    tables = [bind(node).get(name) for name in spec.args]
    return not tables or all(isinstance(table, Node) and _is_identity(table, ops) for table in tables)


def _is_identity(table: Node, ops: OpTable) -> bool:
    while ops.form(table) in ("copy", "cast") and table.all_input_nodes:
        table = table.all_input_nodes[0]
    return op_name(table) == "aten.eye"


def without_indicators(facts: Facts, spec: OpSpec, carrying: dict[Slot, Node]) -> dict[Slot, Node]:
    """The carrying operands of a node without indicators that only select from the others."""
    if spec.kind not in ("product", "quotient"):
        return carrying
    return {slot: n for slot, n in carrying.items() if n not in facts.indicators} or carrying


def drop_unread_indicators(graph: Graph, facts: Facts) -> None:
    """Drop indicators that only select from signals: they carry no relevance, and are no sources."""
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
