"""Tensors without a negative entry: outputs of a ReLU, a sigmoid, an exponential, also moved, added or averaged.

Rules on parts of a layer run it on the positive and on the negative part of its input. If there is no negative part,
half of these runs are zero and are left out. A ReLU behind a layer gives its negative outputs no relevance, so nothing
is computed for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.operators.table import OpSpec, bind

#: kinds of operators that keep the sign of their operands, besides entries of the op table with sign "kept"
_KEEPING = ("movement", "selection")


def find_signs(graph: Graph, facts: Facts) -> None:
    """Fill ``facts.nonnegative`` and ``facts.rectifiers`` in one walk."""
    for node in graph.nodes:
        spec = facts.specs.get(node)
        if spec is not None and _is_nonnegative(facts, node, spec):
            facts.nonnegative.add(node)
            if _rectifies(node, spec):
                facts.rectifiers.add(node)


def _rectifies(node: Node, spec: OpSpec) -> bool:
    return spec.extra.get("rectifies") is True or bind(node).get(str(spec.extra.get("sign"))) == 0


def _is_nonnegative(facts: Facts, node: Node, spec: OpSpec) -> bool:
    sign = spec.extra.get("sign")
    if sign == "nonnegative" or spec.extra.get("positive") is True:
        return True
    bound = bind(node)
    if sign not in (None, "kept"):  # the argument that is the lower bound
        least = bound.get(str(sign))
        return isinstance(least, (int, float)) and least >= 0
    if sign == "kept" or spec.kind in _KEEPING or (spec.kind == "product" and spec.elementwise):
        return all(_no_negative(facts, value) for value in _values(bound, spec))
    return False


def _values(bound: dict[str, object], spec: OpSpec) -> Iterable[object]:
    """All values in the result: operands, added terms, literals and coefficients."""
    names = [*spec.args, *spec.terms, *spec.extra.get("literals", ())]
    names += [c for c in spec.extra.get("coefficients", ()) if isinstance(c, str)]
    for name in names:
        value = bound.get(name)
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _no_negative(facts: Facts, value: object) -> bool:
    if isinstance(value, Node):
        return value in facts.nonnegative
    return value is None or (isinstance(value, (int, float)) and value >= 0)
