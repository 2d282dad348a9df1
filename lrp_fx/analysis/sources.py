"""Sources of relevance: floating-point inputs, and rows of a table that the values of an input index.

A lookup is a source only if its table is a constant: the output then depends on the index through the rows alone. Rows
of a tensor that carries relevance are that tensor, moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Lookup, Source
from lrp_fx.analysis.indicators import creates_indicators, keeps_indicators
from lrp_fx.graph.operands import is_float, is_integer, slots, value
from lrp_fx.operators.table import OpSpec, bind

_KEEPING = ("movement", "linear", "selection", "product", "nonlinearity", "homogeneous")


@dataclass
class Finder:
    """Finds the sources of a graph, node by node in graph order.

    The values of an input keep their identity through movement, rounding and arithmetic on single entries, and lose it
    in a comparison or a count: positions counted from a padding mask are not the tokens. Integers that an input picks
    from a table of integers keep it, too.

    Attributes:
        facts: facts of the graph up to here; ``input_values`` and ``indicators`` are filled here.
        rows: integers that were picked from a table: cast to floating point, they are its rows.
    """

    facts: Facts
    rows: set[Node] = field(default_factory=set)

    def source(self, node: Node) -> Source | None:
        """The source at ``node``, or None."""
        input_values = self.facts.input_values
        if node.op == "placeholder":
            if node.meta.get("number"):
                return None
            if is_float(node) or is_integer(node):
                input_values[node] = (node,)
            carries = is_float(node) and node not in self.facts.masks
            return Source(node, node, None, str(node.target)) if carries else None
        spec = self.facts.ops.get(node) if node.op == "call_function" else None
        if spec is None:
            return None
        lookup = find_lookup(node, spec)
        if lookup is not None and not any(
            self._carries_or_has_input_values(n) for n in slots(node, spec.args).values()
        ):
            picks = [(owner, n) for n in lookup.indices for owner in input_values.get(n, ())]
            if picks and creates_indicators(node, spec, self.facts.ops):
                self.facts.indicators.add(node)
            if picks and is_float(node):
                return self._rows(node, lookup, picks)
            if picks and is_integer(node):
                input_values[node] = tuple(dict.fromkeys(owner for owner, _ in picks))
                if not spec.extra.get("entrywise"):
                    self.rows.add(node)
                return None
        return self._pass_on(node, spec)

    def _carries_or_has_input_values(self, table: Node) -> bool:
        return self.facts.carries(table) if is_float(table) else table in self.facts.input_values

    def _rows(self, node: Node, lookup: Lookup, picks: list[tuple[Node, Node]]) -> Source:
        (owner, indices), *further = picks
        return Source(node, owner, indices, table_name(node), lookup.dim, lookup.depth, tuple(further))

    def _pass_on(self, node: Node, spec: OpSpec) -> Source | None:
        """Note the inputs whose values are entries of ``node``; integer rows become a source when they are cast."""
        facts = self.facts
        operands = list(slots(node, spec.args + spec.terms).values())
        holding = [n for n in operands if n in facts.input_values]
        if not holding or spec.kind not in _KEEPING or spec.extra.get("cumulative"):
            return None  # a running count is the position of an entry, not its value
        if keeps_indicators(spec) and all(n in facts.indicators for n in holding):
            facts.indicators.add(node)
        if is_float(node):
            if any(n in self.rows for n in holding) and spec.kind == "movement":
                return self._rows(node, Lookup((holding[0],), 0, holding[0].meta["val"].dim()),
                                  [(owner, holding[0]) for owner in facts.input_values[holding[0]]])  # fmt: skip
            apart = spec.elementwise or spec.kind == "movement"
            mixed = any(facts.carries(n) and n not in facts.input_values for n in operands)
            if not apart or mixed or not all(is_float(n) for n in holding):
                return None
        elif not is_integer(node):
            return None
        facts.input_values[node] = tuple(dict.fromkeys(owner for n in holding for owner in facts.input_values[n]))
        if any(n in self.rows for n in holding):
            self.rows.add(node)
        return None


def find_lookup(node: Node, spec: OpSpec) -> Lookup | None:
    """The indices of a lookup and their dimensions in the result; None for other nodes."""
    named, val = spec.extra.get("picks"), value(node)
    if named is None or not hasattr(val, "dim"):
        return None
    bound = bind(node)
    indexing = bound.get(named)
    if not isinstance(indexing, (list, tuple)):
        if not isinstance(indexing, Node):
            return None
        if spec.extra.get("entrywise"):
            return Lookup((indexing,), 0, val.dim())
        dim = bound.get("dim")
        return Lookup((indexing,), dim % max(val.dim(), 1) if isinstance(dim, int) else 0, indexing.meta["val"].dim())
    places = [i for i, n in enumerate(indexing) if isinstance(n, Node)]
    if not places:
        return None
    together = places[-1] - places[0] + 1 == len(places)
    indices = tuple(indexing[i] for i in places)
    return Lookup(indices, places[0] if together else 0, max(_rank(n) for n in indices))


def _rank(index: Node) -> int:
    """Number of dimensions of one index: a boolean mask counts as the one-dimensional list of its true positions."""
    return 1 if not is_integer(index) else index.meta["val"].dim()


def table_name(node: Node) -> str:
    """Path of the parameter or buffer at the head of ``node``'s operands."""
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            return str(operand.target)
        if operand.op == "call_function" and is_float(operand):
            return table_name(operand)
    return node.name
