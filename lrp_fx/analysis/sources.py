"""Where relevance of the inputs is collected: floating inputs, and rows that the values of an input pick from a table.

A lookup is a source only where its table is a constant: the rows are then all that the output knows of the input that
picked them. Rows of a tensor that carries relevance are that tensor, moved, whoever picked them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Lookup, Source
from lrp_fx.analysis.indicators import begins, keeps
from lrp_fx.graph.operands import is_float, is_integer, slots, value
from lrp_fx.operators.table import OpSpec, bind

_KEEPING = ("movement", "linear", "selection", "product", "nonlinearity", "homogeneous")


@dataclass
class Finder:
    """Finds the sources of a graph, asked node by node in graph order, while reach is computed.

    The values of an input keep their identity through movement, rounding and arithmetic on single entries, and lose it
    in a comparison or a count: positions that a model counts from its padding mask are not the tokens. What integers
    picked from a table of integers still says which ones they were.

    Attributes:
        facts: where ``held`` is noted, and what carries relevance so far.
        rows: integers that were picked from a table: as floating numbers they are its rows.
    """

    facts: Facts
    rows: set[Node] = field(default_factory=set)

    def source(self, node: Node) -> Source | None:
        """The source that begins at ``node``, if one does."""
        held = self.facts.held
        if node.op == "placeholder":
            if node.meta.get("number"):
                return None
            if is_float(node) or is_integer(node):
                held[node] = (node,)
            carries = is_float(node) and node not in self.facts.masks
            return Source(node, node, None, str(node.target)) if carries else None
        spec = self.facts.ops.get(node) if node.op == "call_function" else None
        if spec is None:
            return None
        lookup = find_lookup(node, spec)
        if lookup is not None and not any(self._carries_or_holds(n) for n in slots(node, spec.args).values()):
            picks = [(owner, n) for n in lookup.indices for owner in held.get(n, ())]
            if picks and begins(node, spec, self.facts.ops):
                self.facts.indicators.add(node)
            if picks and is_float(node):
                return self._rows(node, lookup, picks)
            if picks and is_integer(node):
                held[node] = tuple(dict.fromkeys(owner for owner, _ in picks))
                if not spec.extra.get("entrywise"):
                    self.rows.add(node)
                return None
        return self._pass_on(node, spec)

    def _carries_or_holds(self, table: Node) -> bool:
        return self.facts.carries(table) if is_float(table) else table in self.facts.held

    def _rows(self, node: Node, lookup: Lookup, picks: list[tuple[Node, Node]]) -> Source:
        (owner, indices), *further = picks
        return Source(node, owner, indices, table_name(node), lookup.dim, lookup.depth, tuple(further))

    def _pass_on(self, node: Node, spec: OpSpec) -> Source | None:
        """Note whose values ``node`` holds, entry by entry; rows of integers become a source where they are cast."""
        facts = self.facts
        operands = list(slots(node, spec.args + spec.terms).values())
        holding = [n for n in operands if n in facts.held]
        if not holding or spec.kind not in _KEEPING or spec.extra.get("cumulative"):
            return None  # (a running count says where an entry stands, not what it is)
        if keeps(spec) and all(n in facts.indicators for n in holding):
            facts.indicators.add(node)
        if is_float(node):
            if any(n in self.rows for n in holding) and spec.kind == "movement":
                return self._rows(node, Lookup((holding[0],), 0, holding[0].meta["val"].dim()),
                                  [(owner, holding[0]) for owner in facts.held[holding[0]]])  # fmt: skip
            apart = spec.elementwise or spec.kind == "movement"
            mixed = any(facts.carries(n) and n not in facts.held for n in operands)
            if not apart or mixed or not all(is_float(n) for n in holding):
                return None
        elif not is_integer(node):
            return None
        facts.held[node] = tuple(dict.fromkeys(owner for n in holding for owner in facts.held[n]))
        if any(n in self.rows for n in holding):
            self.rows.add(node)
        return None


def find_lookup(node: Node, spec: OpSpec) -> Lookup | None:
    """What picks the entries that ``node`` reads, and where in the result its dimensions are; None for other nodes."""
    named, val = spec.extra.get("picks"), value(node)
    if named is None or not hasattr(val, "dim"):
        return None
    bound = bind(node)
    given = bound.get(named)
    if not isinstance(given, (list, tuple)):
        if not isinstance(given, Node):
            return None
        if spec.extra.get("entrywise"):
            return Lookup((given,), 0, val.dim())
        dim = bound.get("dim")
        return Lookup((given,), dim % max(val.dim(), 1) if isinstance(dim, int) else 0, given.meta["val"].dim())
    places = [i for i, n in enumerate(given) if isinstance(n, Node)]
    if not places:
        return None
    together = places[-1] - places[0] + 1 == len(places)
    indices = tuple(given[i] for i in places)
    return Lookup(indices, places[0] if together else 0, max(_rank(n) for n in indices))


def _rank(index: Node) -> int:
    """Dimensions of an index among several: of a mask, those of the positions at which it is true."""
    return 1 if not is_integer(index) else index.meta["val"].dim()


def table_name(node: Node) -> str:
    """Path of the parameter or buffer at the head of ``node``'s operands."""
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            return str(operand.target)
        if operand.op == "call_function" and is_float(operand):
            return table_name(operand)
    return node.name
