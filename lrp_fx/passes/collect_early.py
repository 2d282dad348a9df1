"""A graph pass: relevance of token ids is collected behind the first linear layers instead of in front of them.

Of the row that an id picks, an explanation says the sum over its features, x . g. What only multiplies the row by
constants (a norm whose statistic is one, a linear layer without bias) hands on as much as it gets: with y = A x it is
x . (A^T g) = y . g. So the sum is taken at y, and the way back ends there: the transposed products of the first
queries, keys and values are not computed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.operands import Slot, all_slots, is_float
from lrp_fx.operators.table import OpTable, bind
from lrp_fx.passes.hoist_slices import positional
from lrp_fx.rules import functions as rules

aten = torch.ops.aten

_LAYER, _CONSTANT = aten.linear.default, aten.detach.default


def collect_late(
    graph: fx.Graph, ops: OpTable, taps: Sequence[Node], depths: Sequence[int | None], latents: Container[Node]
) -> list[list[Node]]:
    """Let rows that token ids pick be constants, and what the first linear layers make of them sources in their place.

    Args:
        graph: a graph with its target; nodes need ``meta["val"]``.
        ops: the op table.
        taps: its sources.
        depths: of each, how many leading dimensions its ids have; None for what is no row of a table.
        held: values whose own cotangent is asked for.

    Returns:
        for each source the values at which its relevance is collected: itself where nothing is gained.
    """
    look = _Look(graph, ops, taps, latents)
    collected = []
    for tap, depth in zip(taps, depths, strict=True):
        edges = {} if depth is None else dict(look.edges(tap, depth))
        late = [node for node in edges if node is not tap]
        if not any(node.target is _LAYER for node in late):
            collected.append([tap])
            continue
        for user in [u for u in tap.users if u not in edges.get(tap, ())]:
            user.replace_input_with(tap, tap.args[0])  # type: ignore[arg-type]
        collected.append([tap] if tap in edges else [])
        for node in late:
            with graph.inserting_after(node):
                source = graph.call_function(rules.source, (node,))
            source.meta = dict(node.meta)
            for user in edges[node]:
                user.replace_input_with(node, source)
            collected[-1].append(source)
    return collected


def per_source(parts: Sequence[Tensor], counts: Sequence[int], depths: Sequence[int | None]) -> list[Tensor]:
    """Relevance of each source from that of its ``counts`` places; of several, summed over features."""
    feed, collected = iter(parts), []
    for count, depth in zip(counts, depths, strict=True):
        pieces = list(itertools.islice(feed, count))
        if count > 1:
            pieces = [functools.reduce(torch.add, [part.flatten(depth or 0).sum(-1) for part in pieces])]
        collected += pieces
    return collected


class _Look:
    """Where rows of a graph go.

    Attributes:
        ops: the op table.
        held: values whose own cotangent is asked for.
        live: values that depend on a source, other than as a constant.
        read: values whose cotangent reaches the target.
    """

    def __init__(self, graph: fx.Graph, ops: OpTable, taps: Sequence[Node], held: Container[Node]) -> None:
        self.ops, self.held = ops, held
        self.live = set(taps)
        for node in graph.nodes:
            if node.target is not _CONSTANT and any(n in self.live for n in node.all_input_nodes):
                self.live.add(node)
        self.read: set[Node] = set()
        for node in reversed(graph.nodes):
            if any(u.op == "output" or (u in self.read and u.target is not _CONSTANT) for u in node.users):
                self.read.add(node)

    def edges(self, node: Node, depth: int) -> Iterator[tuple[Node, list[Node]]]:
        """(value, its users that do more than multiply by constants), from ``node`` on, no further than a layer."""
        carrying = [u for u in node.users if u in self.read and u.target is not _CONSTANT]
        ends = node in self.held or node.target is _LAYER
        inner = [] if ends else [u for u in carrying if self._multiplies(u, node, depth)]
        if ends or len(inner) < len(carrying):
            yield node, [u for u in node.users if u not in inner]
        for user in inner:
            yield from self.edges(user, depth)

    def _multiplies(self, user: Node, node: Node, depth: int) -> bool:
        """Whether an operator multiplies the rows of ``node`` by constants, each by itself."""
        slots = positional(user, depth, self.ops)
        if slots is None or not is_float(user):
            return False
        operands = all_slots(user)
        matching = [slot for slot in slots if operands[slot] is node]
        if len(matching) != 1 or any(n in self.live for slot, n in operands.items() if slot != matching[0]):
            return False
        if user.target is rules.normalization_rule:
            return matching[0].name == "x" and bind(operands[Slot("y")]).get("bias") is None
        if user.target is _LAYER:
            return bind(user).get("bias") is None
        spec = self.ops.get(user)
        if spec is None or spec.terms:
            return False
        multiplied = spec.kind == "product" or (spec.kind == "quotient" and matching[0].name == spec.args[0])
        return (multiplied and spec.elementwise) or spec.extra.get("form") in ("copy", "cast")
