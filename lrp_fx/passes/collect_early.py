"""A graph pass: collect the relevance of token ids at the outputs of the first linear layers.

The relevance of a token is the sum over the features of its embedding row, x . g. Operators that multiply the row by
constants (a norm with a constant statistic, a linear layer without bias) preserve this sum: for y = A x it is
x . (A^T g) = y . g. So the sum is taken at y and the backward pass stops there, without the transposed products of the
first queries, keys and values. A function of degree 1 of each entry preserves it, too: x f'(x) = f(x). The generalised
gamma rule has two such layers, A x and |A| |x|.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.analysis.products import degree
from lrp_fx.graph.operands import Slot, all_slots, is_float
from lrp_fx.operators.table import OpTable, bind
from lrp_fx.passes.hoist_slices import positional
from lrp_fx.rules import functions as rules

aten = torch.ops.aten

_LAYER, _CONSTANT = aten.linear.default, aten.detach.default


def collect_early(
    graph: fx.Graph, ops: OpTable, taps: Sequence[Node], depths: Sequence[int | None], latents: Container[Node]
) -> list[list[Node]]:
    """Detach the embedding rows and collect relevance at the outputs of the first linear layers instead.

    Args:
        graph: a graph with its target; nodes need ``meta["val"]``.
        ops: the op table.
        taps: its sources.
        depths: number of leading dimensions of the ids of each source; None for a source that is no lookup.
        latents: nodes whose own cotangent is asked for.

    Returns:
        For each source the nodes at which its relevance is collected: the source itself if nothing is gained.
    """
    reach = _Reach(graph, ops, taps, latents)
    collected = []
    for tap, depth in zip(taps, depths, strict=True):
        edges = {} if depth is None else dict(reach.edges(tap, depth))
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


def per_source(relevances: Sequence[Tensor], counts: Sequence[int], depths: Sequence[int | None]) -> list[Tensor]:
    """Relevance of each source, given that of its ``counts`` nodes; of several nodes, the sum over features."""
    feed, collected = iter(relevances), []
    for count, depth in zip(counts, depths, strict=True):
        pieces = list(itertools.islice(feed, count))
        if count > 1:
            pieces = [functools.reduce(torch.add, [part.flatten(depth or 0).sum(-1) for part in pieces])]
        collected += pieces
    return collected


class _Reach:
    """The operators between an embedding row and the first linear layers.

    Attributes:
        ops: the op table.
        latents: nodes whose own cotangent is asked for.
        live: nodes that depend on a source without a detach in between.
        read: nodes with a cotangent: the output depends on them without a detach in between.
    """

    def __init__(self, graph: fx.Graph, ops: OpTable, taps: Sequence[Node], latents: Container[Node]) -> None:
        self.ops, self.latents = ops, latents
        self.live = set(taps)
        for node in graph.nodes:
            if node.target is not _CONSTANT and any(n in self.live for n in node.all_input_nodes):
                self.live.add(node)
        self.read: set[Node] = set()
        for node in reversed(graph.nodes):
            if any(u.op == "output" or (u in self.read and u.target is not _CONSTANT) for u in node.users):
                self.read.add(node)

    def edges(self, node: Node, depth: int) -> Iterator[tuple[Node, list[Node]]]:
        """(node, its users that do more than multiply by constants), from ``node`` on, up to the first layers."""
        carrying = [u for u in node.users if u in self.read and u.target is not _CONSTANT]
        ends = node in self.latents or node.target is _LAYER
        inner = [] if ends else [u for u in carrying if self._multiplies(u, node, depth)]
        if ends or len(inner) < len(carrying):
            yield node, [u for u in node.users if u not in inner]
        for user in inner:
            yield from self.edges(user, depth)

    def _multiplies(self, user: Node, node: Node, depth: int) -> bool:
        """Whether ``user`` multiplies each row of ``node`` by constants."""
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
        if spec.kind == "homogeneous" and spec.elementwise:  # magnitudes: x f'(x) = f(x) (Euler)
            return degree(user, spec) == 1
        multiplied = spec.kind == "product" or (spec.kind == "quotient" and matching[0].name == spec.args[0])
        return (multiplied and spec.elementwise) or spec.extra.get("form") in ("copy", "cast")
