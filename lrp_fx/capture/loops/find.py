"""Find a loop in a captured graph: equal segments of nodes, each of which reads the next rows of some tensors.

The segments begin where the rows of one tensor are read, in order. The nodes of the third segment are the template.
The second to the last but one have the same nodes, in the same order. The first has the nodes that prepare the loop,
too, and the last lacks what nobody reads. An operand of a node in the template is

- a node of the same segment,
- a node of the segment before: a part of the state, or
- a node outside of all segments: a constant of the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.graph.dimensions import example_size
from lrp_fx.graph.steps import SHOWN

aten = torch.ops.aten
SELECT, SCATTER = aten.select.int, aten.select_scatter.default
_INDEX: dict[Any, int] = {SELECT: 2, SCATTER: 3}  #: operator -> place of its index, which may count the steps


@dataclass
class Segments:
    """A loop that was found.

    Attributes:
        template: nodes of one step.
        steps: nodes of every step by place in the template; None where nobody reads it.
        places: node -> (step, place in the template).
        first: place in the template -> its value before the first step, for parts of the state.
    """

    template: list[Node]
    steps: list[list[Node | None]] = field(default_factory=list)
    places: dict[Node, tuple[int, int]] = field(default_factory=dict)
    first: dict[int, Node] = field(default_factory=dict)

    def within(self, node: Node) -> bool:
        """Whether a node belongs to a step."""
        return node in self.places

    def is_row(self, node: Node) -> bool:
        """Whether a node reads a row of a tensor outside of the loop."""
        return node.target is SELECT and not self.within(node.args[0])  # type: ignore[arg-type]

    def is_written(self, place: int) -> bool:
        """Whether the node at a place writes a row of a tensor that all steps write in turn."""
        node = self.template[place]
        before = self.steps[1][place]
        return node.target is SCATTER and node.args[0] is before

    def counts(self, place: int) -> bool:
        """Whether the index of a row at a place is another one in every step.

        Raises:
            NoLoop: if it neither counts nor stays.
        """
        indices = self.indices(place)
        return indices[0] != indices[1]

    def indices(self, place: int) -> list[int]:
        """The index of a row in every step.

        Raises:
            NoLoop: if it does not count up or down, or stay.
        """
        at = _INDEX[self.template[place].target]
        nodes = [step[place] for step in self.steps]
        read: list[Any] = [None if node is None else node.args[at] for node in nodes]
        start, pace = read[0], read[1] - read[0]
        indices = [start + pace * number for number in range(len(read))]
        if abs(pace) > 1 or any(b not in (None, a) for a, b in zip(indices, read, strict=True)):
            raise NoLoop
        return indices


class NoLoop(Exception):
    """Nodes that look like a loop are none."""


def find_loop(graph: fx.Graph) -> Segments | None:
    """The first loop of a graph."""
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    number = {node: i for i, node in enumerate(nodes)}
    for starts in _starts(nodes, number):
        try:
            return _segments(nodes, starts)
        except NoLoop:
            continue
    return None


def _starts(nodes: list[Node], number: dict[Node, int]) -> list[list[int]]:
    """Places of nodes that read the rows of one tensor in order, earliest first."""
    families: dict[tuple[Node, int], list[Node]] = {}
    for node in nodes:
        if node.target is SELECT and isinstance(node.args[2], int):
            families.setdefault((node.args[0], node.args[1]), []).append(node)  # type: ignore[arg-type]
    candidates: list[list[int]] = []
    for reads in families.values():
        groups = [(index, [*group]) for index, group in itertools.groupby(reads, lambda n: n.args[2])]
        for run in _runs([index for index, _ in groups]):  # type: ignore[misc]
            first, *others = [group for _, group in groups[run]]
            starts = [first[-min(len(first), len(others[0]))], *(group[0] for group in others)]
            candidates.append([number[n] for n in starts])
    return sorted(candidates)


def _runs(indices: list[int]) -> Iterator[slice]:
    """The parts of a list in which numbers count up or down, of at least ``SHOWN`` numbers."""
    start = 0
    for place in range(1, len(indices) + 1):
        pace = indices[start + 1] - indices[start] if start + 1 < len(indices) else 0
        if place < len(indices) and abs(pace) == 1 and indices[place] - indices[place - 1] == pace:
            continue
        if place - start >= SHOWN:
            yield slice(start, place)
        start = place if place - start == 1 else place - 1


def _segments(nodes: list[Node], starts: list[int]) -> Segments:
    """Compare all segments.

    Raises:
        NoLoop: if they differ.
    """
    pieces = [nodes[a:b] for a, b in zip(starts, [*starts[1:], len(nodes)], strict=True)]
    segments = Segments(pieces[2])
    segments.steps = [[None] * len(pieces[2]) for _ in pieces]
    for step, part in enumerate(pieces[1:-1], 1):
        if len(part) != len(segments.template):
            raise NoLoop
        for place, node in enumerate(part):
            segments.places[node] = (step, place)
            segments.steps[step][place] = node
    for step, part in enumerate(pieces[1:-1], 1):
        for node, other in zip(segments.template, part, strict=True):
            if step > 1 and not _alike(segments, node, other, step):
                raise NoLoop
    _first(segments, pieces[0])
    if not all(_alike(segments, a, b, 1) for a, b in zip(segments.template, pieces[1], strict=True)):
        raise NoLoop
    _last(segments, pieces[-1], len(pieces) - 1)
    for place, node in enumerate(segments.template):
        if segments.is_row(node) and not {*segments.indices(place)} <= {*range(_size(node))}:
            raise NoLoop  # the segments begin in the middle of a step
    return segments


def _size(row: Node) -> int:
    """The size of the dimension that a row is read from."""
    x, dim, _ = row.args
    return example_size(x.meta["val"].shape[dim])  # type: ignore[union-attr, index]


def _first(segments: Segments, part: list[Node]) -> None:
    """Match the first segment, which also prepares the loop."""
    place = 0
    for node in part:
        if place < len(segments.template) and _alike(segments, segments.template[place], node, 0):
            segments.places[node] = (0, place)
            segments.steps[0][place] = node
            place += 1
        elif any(segments.within(n) and not segments.is_row(n) for n in node.all_input_nodes):
            raise NoLoop
    if place < len(segments.template):
        raise NoLoop


def _last(segments: Segments, part: list[Node], step: int) -> None:
    """Match the last segment, which lacks what nobody reads, and goes on behind the loop."""
    rest = iter(part)
    node = next(rest, None)
    for place, wanted in enumerate(segments.template):
        if node is not None and _alike(segments, wanted, node, step):
            segments.places[node] = (step, place)
            segments.steps[step][place] = node
            node = next(rest, None)


def _alike(segments: Segments, node: Node, other: Node, step: int) -> bool:
    """Whether ``other`` is in ``step`` what ``node`` is in the template."""
    if node.target is not other.target:
        return False
    pairs = _paired(node, other)
    if pairs is None:
        return False
    first: dict[int, Node] = {}
    for mine, its in pairs:
        at, place = segments.places.get(mine, (None, -1))
        if at == 2:
            same = segments.places.get(its) == (step, place)
        elif at == 1 and step > 0:
            same = segments.places.get(its) == (step - 1, place)
        elif at == 1:
            same = not segments.within(its) or segments.is_row(its)
            same &= segments.first.get(place, first.setdefault(place, its)) is its
        else:
            same = at is None and mine is its
        if not same:
            return False
    segments.first |= first
    return True


def _paired(node: Node, other: Node) -> list[tuple[Node, Node]] | None:
    """The operands of two nodes, pair by pair; None if other arguments differ."""
    at = _INDEX.get(node.target)
    leaves, spec = pytree.tree_flatten((node.args if at is None else node.args[:at], dict(node.kwargs)))
    others, other_spec = pytree.tree_flatten((other.args if at is None else other.args[:at], dict(other.kwargs)))
    if spec != other_spec:
        return None
    pairs = []
    for leaf, its in zip(leaves, others, strict=True):
        if isinstance(leaf, Node) and isinstance(its, Node):
            pairs.append((leaf, its))
        elif isinstance(leaf, Node) or isinstance(its, Node) or type(leaf) is not type(its) or _differ(leaf, its):
            return None
    return pairs


def _differ(one: Any, other: Any) -> bool:
    return one != other and not (one != one and other != other)  # NaN is NaN
