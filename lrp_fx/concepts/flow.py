"""Relevance flow between parts of a model: a circuit, as a weighted directed graph.

Every listed latent is a node. The weight of an edge A -> B is the relevance that goes from B to A directly, along paths
without another node. The model is cut at the nodes (:mod:`lrp_fx.concepts.cut`) and swept piece by piece, from the
target backwards: a node passes relevance on after all of its cotangent has arrived. This is exact, not an approximation
by patching.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lrp_fx.concepts.cut import Cut, cut_forward
from lrp_fx.converted import RuleSource
from lrp_fx.errors import LatentError
from lrp_fx.explain import Target
from lrp_fx.extras import require
from lrp_fx.module import ExplainableModule

if TYPE_CHECKING:
    import networkx

TARGET = "target"

#: an axis with a node for each index (heads), or (axis, parts) with a node for each of that many equal slices of it
Split = int | tuple[int, int]

Detail = Literal["sum", "sample", "position", "element"]


@dataclass(frozen=True)
class _Slice:
    """The tensor of one graph node: a cut, or one slice of it."""

    name: str
    axis: int = 0
    start: int = 0
    length: int = -1

    def of(self, tensor: Tensor) -> Tensor:
        return tensor if self.length < 0 else tensor.narrow(self.axis, self.start, self.length)

    def alone(self, tensor: Tensor) -> Tensor:
        """``tensor``, 0 outside of this slice."""
        if self.length < 0:
            return tensor
        masked = torch.zeros_like(tensor)
        self.of(masked).copy_(self.of(tensor))
        return masked


def relevance_flow(
    xmodel: ExplainableModule,
    *args: Any,
    at: str | Iterable[str],
    target: Target = None,
    split: Mapping[str, Split] | None = None,
    detail: Detail = "sum",
    rules: RuleSource | None = None,
    **kwargs: Any,
) -> networkx.DiGraph:
    """The graph of relevance flow between the inputs, the latents ``at`` and the target.

    Edges point in the direction of the forward pass. With relevance summed over the batch:

    - a node's ``relevance`` is the sum of its outgoing edges, and equals that of ``explain(at=...)``;
    - its incoming edges and ``absorbed`` (relevance absorbed by biases, constants, softmax and stabilisers between it
      and the nodes before it) sum to its relevance;
    - so the relevance of the inputs and all ``absorbed`` sum to the target.

    It takes one forward pass, and for each node (or slice) one backward pass through the graph before it. It is exact
    for every rule whose backward is linear in the cotangent: all but guided backpropagation, DeconvNet and registered
    rules that are not linear.

    Args:
        xmodel: the converted model.
        *args: its inputs.
        at: names of latents, as in ``explain``.
        target: as in ``explain``.
        split: glob -> how the latents it matches are split into nodes ``name[0]``, ``name[1]``, ...: an axis, or
            (axis, parts). ``{"*@mixed": 1}``: one node per head; ``{"*.mlp": -1}``: one per feature.
        detail: tensor attribute ``flow`` of nodes and of edges (relevance of the edge's origin that came over that
            edge): none ("sum"), one number per index of the first dimension ("sample"), summed over features
            ("position": last dimension, dimension 1 of images), or elementwise ("element").
        rules: another rule set than the one of the conversion.
        **kwargs: its inputs by keyword.

    Returns:
        A DAG. Nodes: ``relevance``, ``absorbed``, ``kind`` ("input", "latent", "target"), ``depth`` (length of the
        longest path to the node). Edges: ``weight``.

    Raises:
        LatentError: for a name that matches nothing, or a split that does not fit.
        TargetError, InputError: as ``explain``.
        MissingExtraError: if networkx is not installed.
    """
    nx: Any = require("networkx", "concepts")
    run = cut_forward(xmodel, args, kwargs, (at,) if isinstance(at, str) else at, target, rules)
    slices = [_slices(cut, split or {}) for cut in run.cuts]
    graph = nx.DiGraph(rules=run.sweeper.rewritten.plan.ruleset.name)
    arrived: list[Tensor | None] = [None] * len(run.cuts)

    def send(name: str, value: Tensor, cotangent: Tensor, before: int) -> None:
        for index, g in enumerate(run.send(value, cotangent, run.cuts[:before])):
            if g is None or not bool(g.any()):
                continue
            earlier = arrived[index]
            arrived[index] = g if earlier is None else earlier + g
            relevance = run.cuts[index].relevance(g, run.feeds_zeros)
            for part in slices[index]:
                flow = part.of(relevance)
                if bool(flow.any()):
                    graph.add_edge(part.name, name, weight=float(flow.double().sum()), **_detail(flow, detail))

    chosen = run.chosen.detach()
    flow = {} if detail == "sum" else {"flow": chosen}
    graph.add_node(TARGET, kind="target", relevance=float(chosen.double().sum()), **flow)
    send(TARGET, run.chosen, torch.ones_like(chosen), len(run.cuts))
    for index in reversed(range(len(run.cuts))):
        cut, whole = run.cuts[index], arrived[index]
        relevance = cut.relevance(whole, run.feeds_zeros)
        for part in slices[index]:
            share = part.of(relevance)
            graph.add_node(part.name, kind=cut.kind, relevance=float(share.double().sum()), **_detail(share, detail))
            if whole is not None:
                send(part.name, cut.before, part.alone(whole), index)
    for depth, layer in enumerate(nx.topological_generations(graph)):
        for node in layer:
            graph.nodes[node]["depth"] = depth
    for node, facts in graph.nodes.items():
        incoming = sum(w for _, _, w in graph.in_edges(node, data="weight"))
        facts["absorbed"] = 0.0 if facts["kind"] == "input" else facts["relevance"] - incoming
    return graph


def _slices(cut: Cut, split: Mapping[str, Split]) -> Sequence[_Slice]:
    name = f"{cut.name} (latent)" if cut.name == TARGET else cut.name
    split_of_cut = next((how for pattern, how in split.items() if fnmatchcase(cut.name, pattern)), None)
    if split_of_cut is None or cut.kind == "input":
        return (_Slice(name),)
    axis, count = split_of_cut if isinstance(split_of_cut, tuple) else (split_of_cut, -1)
    shape = cut.after.shape
    if not -len(shape) <= axis < len(shape):
        raise LatentError(f"split of {cut.name!r} along axis {axis}, but it has the shape {tuple(shape)}")
    count = shape[axis] if count < 0 else count
    if count < 1 or shape[axis] % count:
        raise LatentError(f"split of {cut.name!r} into {count} parts, but axis {axis} has the size {shape[axis]}")
    part, length = _Slice(name, axis), shape[axis] // count
    return [replace(part, name=f"{name}[{i}]", start=i * length, length=length) for i in range(count)]


def _detail(flow: Tensor, detail: Detail) -> dict[str, Tensor]:
    if detail == "sum":
        return {}
    if detail == "sample":
        return {"flow": flow.flatten(1).sum(-1) if flow.dim() > 1 else flow}
    if detail == "position":
        return {"flow": flow.sum(1 if flow.dim() > 3 else -1)}
    return {"flow": flow}


def prune(graph: networkx.DiGraph, fraction: float) -> networkx.DiGraph:
    """The strongest edges that together carry ``fraction`` of the flow between the target and the inputs.

    Flow is measured by magnitude, so that relevance for and against does not cancel. From the target backwards, each
    node divides its mass among the nodes before it in proportion to absolute edge weights. So a unit of mass at the
    target arrives at the inputs as a whole, and every edge has a share of it. Edges are added by share, largest first
    (ties in the graph's order), until the mass that reaches the inputs over these edges alone is at least ``fraction``.
    The result has the added edges on paths from an input to the target, with their nodes, weights and attributes;
    ``graph.graph["carried"]`` is the mass that they carry.

    Raises:
        ValueError: for a fraction that is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: give a number above 0 and at most 1")
    whole = _connected(graph, graph.edges)
    totals = {node: sum(abs(w) for _, _, w in whole.in_edges(node, data="weight")) for node in whole}
    shares = {(a, b): abs(w) / totals[b] if totals[b] else 0.0 for a, b, w in whole.edges(data="weight")}
    through, _ = _walk(whole, shares)
    ranked = sorted(through, key=lambda edge: -through[edge])
    enough, low, high = fraction * (1 - 1e-12), 0, len(ranked)
    while low < high:  # bisection: the mass over the first n edges grows with n
        middle = (low + high) // 2
        carried = _walk(whole, {edge: shares[edge] for edge in ranked[:middle]})[1]
        low, high = (low, middle) if carried >= enough else (middle + 1, high)
    subgraph = _connected(graph, ranked[:low])
    subgraph.graph["carried"] = _walk(whole, {edge: shares[edge] for edge in ranked[:low]})[1]
    return subgraph


def _connected(graph: networkx.DiGraph, edges: Iterable[tuple[str, str]]) -> networkx.DiGraph:
    """A copy of ``graph`` with the ``edges`` on a path of ``edges`` from an input to the target, in its order."""
    nx: Any = require("networkx", "concepts")
    chosen = graph.edge_subgraph(list(edges))
    inputs = [n for n, kind in chosen.nodes(data="kind") if kind == "input"]
    below = set(inputs).union(*(nx.descendants(chosen, n) for n in inputs))
    above = {TARGET} | nx.ancestors(chosen, TARGET) if TARGET in chosen else set()
    edges = {(a, b) for a, b in chosen.edges if a in below and b in above}
    nodes = {node for edge in edges for node in edge}
    copied = nx.DiGraph(**graph.graph)  # networkx's own subgraphs have the order of a set: another one in each process
    copied.add_nodes_from((node, facts) for node, facts in graph.nodes(data=True) if node in nodes)
    copied.add_edges_from((a, b, facts) for a, b, facts in graph.edges(data=True) if (a, b) in edges)
    return copied


def _walk(
    graph: networkx.DiGraph, shares: Mapping[tuple[str, str], float]
) -> tuple[dict[tuple[str, str], float], float]:
    """For a unit of mass at the target: (mass over each edge, mass that arrives at the inputs)."""
    nx: Any = require("networkx", "concepts")
    mass = dict.fromkeys(graph, 0.0) | {TARGET: 1.0}
    through = {}
    for node in reversed(list(nx.topological_sort(graph))):
        for before in graph.predecessors(node):
            if (before, node) in shares:
                through[before, node] = mass[node] * shares[before, node]
                mass[before] += through[before, node]
    return through, sum(mass[n] for n, kind in graph.nodes(data="kind") if kind == "input")
