"""Bands of matrices: the diagonals between which entries can be other than 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.constants import constant_value
from lrp_fx.graph.dimensions import example_size, permutation
from lrp_fx.graph.operands import Slot, all_slots, slots
from lrp_fx.operators.table import bind, op_name


class Band(NamedTuple):
    """The diagonals j - i = lowest, ..., highest of a matrix (or of each in a batch): all other entries are 0."""

    lowest: float = -math.inf
    highest: float = math.inf

    def __and__(self, other: Band) -> Band:
        return Band(max(self.lowest, other.lowest), min(self.highest, other.highest))

    def __or__(self, other: Band) -> Band:
        return Band(min(self.lowest, other.lowest), max(self.highest, other.highest))

    @property
    def flipped(self) -> Band:
        """The band of the transposed matrix."""
        return Band(-self.highest, -self.lowest)


_ALL, _NONE = Band(), Band(math.inf, -math.inf)


def band(facts: Facts, node: object) -> Band:
    """The band of an operand: from its operators if it carries relevance, from its values if it is a constant."""
    if isinstance(node, (int, float)):
        return _ALL if node else _NONE
    if not isinstance(node, Node):
        return _ALL
    if not facts.carries(node):
        return _of_values(node)
    return _rule(facts, node)(facts, node)


def bands(facts: Facts, node: Node) -> tuple[Band, Band]:
    """(band of the signals, band of the constants) of a matrix that is a sum of both, or composed of both by masks."""
    signals, constants = _NONE, _NONE
    for addend, region in _addends(facts, node):
        if addend is node:
            signals = signals | band(facts, node)
        elif isinstance(addend, Node) and facts.carries(addend):
            one, other = bands(facts, addend)
            signals, constants = signals | (one & region), constants | (other & region)
        else:
            constants = constants | (band(facts, addend) & region)
    return signals, constants


def _addends(facts: Facts, node: Node) -> list[tuple[object, Band]]:
    """(addend, band in which it counts) of a matrix that is a sum or a masked choice; else the matrix itself."""
    spec, bound, name = facts.specs.get(node), bind(node), op_name(node)
    if name == "aten.where":
        mask = bound["condition"]
        addends = [(bound["self"], _masked(mask, node, True)), (bound["other"], _masked(mask, node, False))]
    elif name == "aten.masked_fill":
        mask = bound["mask"]
        addends = [(bound["self"], _masked(mask, node, False)), (bound["value"], _masked(mask, node, True))]
    elif spec is not None and spec.elementwise and _is_weighed_sum(facts, node):
        operands = spec.args if spec.kind == "linear" else [slot.name for slot in facts.operands[node]]
        addends = [(bound[name], _ALL) for name in operands if bound.get(name) is not None]
    else:
        return [(node, _ALL)]
    return addends if all(_is_as_large(a, node) for a, _ in addends if isinstance(a, Node)) else [(node, _ALL)]


def _is_weighed_sum(facts: Facts, node: Node) -> bool:
    """Whether a node is a sum of matrices, a multiple of one, or a copy or cast of one."""
    spec, tensors = facts.specs[node], all_slots(node)
    scaled = spec.kind in ("product", "quotient") and len(tensors) == 1
    scaled &= spec.kind == "product" or Slot(spec.args[0]) in tensors
    return spec.kind == "linear" or scaled or spec.extra.get("form") in ("copy", "cast")


def _of_values(node: Node) -> Band:
    value = constant_value(node)
    return _ALL if value is None else _of_entries(value)


def _of_entries(matrix: Tensor) -> Band:
    if matrix.dim() < 2:
        return _ALL
    rows, columns = matrix.flatten(0, -3).any(0).nonzero().T if matrix.dim() > 2 else matrix.nonzero().T
    offsets = (columns - rows).tolist()
    return Band(min(offsets), max(offsets)) if offsets else _NONE


def _triangle(facts: Facts, node: Node) -> Band:
    bound = bind(node)
    diagonal = bound["diagonal"]
    if not isinstance(diagonal, int):
        return _ALL
    side = Band(highest=diagonal) if op_name(node) == "aten.tril" else Band(lowest=diagonal)
    return band(facts, bound["self"]) & side


def _masked(mask: object, node: Node, where: bool) -> Band:
    """The band of the entries at which a mask is ``where``."""
    value = constant_value(mask) if isinstance(mask, Node) else None
    if value is None or value.dim() < 2 or list(value.shape[-2:]) != _last_two(node):
        return _ALL
    return _of_entries(value.bool() if where else ~value.bool())


def _factors(facts: Facts, node: Node) -> Band:
    """An entry of a product is 0 if that of one factor is; divisors do not count."""
    spec = facts.specs[node]
    names = spec.args if spec.kind == "product" else spec.args[:1]
    result = _ALL
    for factor in slots(node, names).values():
        if _is_as_large(factor, node):
            result = result & band(facts, factor)
    return result


def _sum(facts: Facts, node: Node) -> Band:
    signals, constants = bands(facts, node)
    return signals | constants


def _is_as_large(operand: Node, node: Node) -> bool:
    """Whether the last two dimensions of an operand are those of the result, without broadcasting."""
    sizes = _last_two(operand)
    return len(sizes) == 2 and sizes == _last_two(node)


def _last_two(node: Node) -> list[int]:
    value = node.meta.get("val")
    return [example_size(size) for size in value.shape[-2:]] if isinstance(value, Tensor) else []


def _unmoved(facts: Facts, node: Node) -> Band:
    """The band of a reshape or expansion that keeps the last two dimensions."""
    (operand,) = facts.operands[node].values()
    return band(facts, operand) if _is_as_large(operand, node) else _ALL


def _permuted(facts: Facts, node: Node) -> Band:
    (operand,) = facts.operands[node].values()
    rank = node.meta["val"].dim()
    last = permutation(node)[-2:]
    if last == [rank - 2, rank - 1]:
        return band(facts, operand)
    return band(facts, operand).flipped if last == [rank - 1, rank - 2] else _ALL


def _any(facts: Facts, node: Node) -> Band:
    return _ALL


def _rule(facts: Facts, node: Node) -> Callable[[Facts, Node], Band]:
    """The function that computes the band of a node, by its operator."""
    spec = facts.specs.get(node)
    if spec is None or not isinstance(node.meta.get("val"), Tensor) or node.meta["val"].dim() < 2:
        return _any
    if op_name(node) in ("aten.tril", "aten.triu"):
        return _triangle
    if [addend for addend, _ in _addends(facts, node)] != [node]:
        return _sum
    form = spec.extra.get("form")
    if form == "permute":
        return _permuted
    if form in ("reshape", "insert") or op_name(node) in ("aten.expand", "aten.expand_as"):
        return _unmoved if len(facts.operands[node]) == 1 else _any
    return _factors if spec.elementwise and spec.kind in ("product", "quotient") else _any
