"""Triangles: between which diagonals the entries of a matrix can be other than 0."""

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
        """That of the transposed matrix."""
        return Band(-self.highest, -self.lowest)


_ALL, _NONE = Band(), Band(math.inf, -math.inf)


def band(facts: Facts, node: object) -> Band:
    """The band of an operand: of a signal by what its operators do, of a constant by its values."""
    if isinstance(node, (int, float)):
        return _ALL if node else _NONE
    if not isinstance(node, Node):
        return _ALL
    if not facts.carries(node):
        return _of_values(node)
    return _rule(facts, node)(facts, node)


def bands(facts: Facts, node: Node) -> tuple[Band, Band]:
    """The band of the signals in a matrix, and that of the constants beside them: what is added, or put in a place."""
    signals, constants = _NONE, _NONE
    for part, kept in _parts(facts, node):
        if part is node:
            signals = signals | band(facts, node)
        elif isinstance(part, Node) and facts.carries(part):
            one, other = bands(facts, part)
            signals, constants = signals | (one & kept), constants | (other & kept)
        else:
            constants = constants | (band(facts, part) & kept)
    return signals, constants


def _parts(facts: Facts, node: Node) -> list[tuple[object, Band]]:
    """What a matrix is the sum of, entry by entry, each with where it counts; itself where it is no sum."""
    spec, bound, name = facts.specs.get(node), bind(node), op_name(node)
    if name == "aten.where":
        mask = bound["condition"]
        parts = [(bound["self"], _masked(mask, node, True)), (bound["other"], _masked(mask, node, False))]
    elif name == "aten.masked_fill":
        mask = bound["mask"]
        parts = [(bound["self"], _masked(mask, node, False)), (bound["value"], _masked(mask, node, True))]
    elif spec is not None and spec.elementwise and _is_weighed_sum(facts, node):
        operands = spec.args if spec.kind == "linear" else [slot.name for slot in facts.operands[node]]
        parts = [(bound[name], _ALL) for name in operands if bound.get(name) is not None]
    else:
        return [(node, _ALL)]
    return parts if all(_is_as_large(p, node) for p, _ in parts if isinstance(p, Node)) else [(node, _ALL)]


def _is_weighed_sum(facts: Facts, node: Node) -> bool:
    """Whether a node adds matrices, or is a multiple of one, or the same one in another precision."""
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
    kept = bound["diagonal"]
    if not isinstance(kept, int):
        return _ALL
    side = Band(highest=kept) if op_name(node) == "aten.tril" else Band(lowest=kept)
    return band(facts, bound["self"]) & side


def _masked(mask: object, node: Node, where: bool) -> Band:
    """The band of the entries at which a mask is true, or is not."""
    value = constant_value(mask) if isinstance(mask, Node) else None
    if value is None or value.dim() < 2 or list(value.shape[-2:]) != _last_two(node):
        return _ALL
    return _of_entries(value.bool() if where else ~value.bool())


def _factors(facts: Facts, node: Node) -> Band:
    """What one factor has no entries at, the product has none at; a divisor takes none away."""
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
    """Whether the last two dimensions of an operand are those of the result, not spread out."""
    sizes = _last_two(operand)
    return len(sizes) == 2 and sizes == _last_two(node)


def _last_two(node: Node) -> list[int]:
    value = node.meta.get("val")
    return [example_size(size) for size in value.shape[-2:]] if isinstance(value, Tensor) else []


def _kept(facts: Facts, node: Node) -> Band:
    """A movement that leaves matrices as they are."""
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
    """By what the op table says of an operator."""
    spec = facts.specs.get(node)
    if spec is None or not isinstance(node.meta.get("val"), Tensor) or node.meta["val"].dim() < 2:
        return _any
    if op_name(node) in ("aten.tril", "aten.triu"):
        return _triangle
    if [part for part, _ in _parts(facts, node)] != [node]:
        return _sum
    form = spec.extra.get("form")
    if form == "permute":
        return _permuted
    if form in ("reshape", "insert") or op_name(node) in ("aten.expand", "aten.expand_as"):
        return _kept if len(facts.operands[node]) == 1 else _any
    return _factors if spec.elementwise and spec.kind in ("product", "quotient") else _any
