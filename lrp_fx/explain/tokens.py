"""Relevance of ids: from looked-up rows back to the entries of the input that has the ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.analysis import Facts, Source
from lrp_fx.analysis.sources import find_lookup
from lrp_fx.errors import InputError
from lrp_fx.graph.location import locate
from lrp_fx.graph.operands import declared
from lrp_fx.operators.table import bind


def row_relevance(source: Source, relevance: Tensor) -> Tensor:
    """Sum relevance of looked-up rows over features -> the broadcast shape of the indices.

    The dimensions of the indices begin at ``source.dim``; all others are features.
    """
    if relevance.dim() <= source.depth:
        return relevance
    before = list(range(source.dim))
    return relevance.movedim(before, [d - source.dim for d in before]).flatten(source.depth).sum(-1)


def to_inputs(source: Source, relevance: Tensor, env: Mapping[Node, Any], facts: Facts) -> list[tuple[Node, Tensor]]:
    """(input, relevance in its shape) for every input whose ids look up rows of a source; all get equal shares.

    Integers have no gradient. So a float twin of the input (ones) goes through the same operators (slices, shifts,
    padding, offsets, rounding), and the transpose of that linear map takes relevance of rows to entries of the input.
    Where the indices are the input itself, no map is needed.

    Args:
        source: a source with indices.
        relevance: relevance of its rows, elementwise (or summed over features).
        env: values of the nodes between input and indices.
        facts: facts of the graph, with the inputs whose values each node holds.

    Raises:
        InputError: where the map from ids to indices is not known.
    """
    rows = row_relevance(source, relevance) / len(source.picks)
    return [(owner, _to_input(source.node, owner, indices, rows, env, facts)) for owner, indices in source.picks]


def _to_input(node: Node, owner: Node, indices: Node, rows: Tensor, env: Mapping[Node, Any], facts: Facts) -> Tensor:
    if indices is owner:
        return rows.sum_to_size(env[owner].shape)
    with torch.enable_grad():
        leaf = torch.ones_like(env[owner], dtype=torch.float64).requires_grad_()
        twin = _moved(indices, owner, {owner: leaf}, env, facts)
        if twin is None:
            raise InputError(
                f"the ids of input '{owner.name}' cannot be followed to the rows they look up: {locate(node)}"
            )
        (relevance,) = torch.autograd.grad((twin * rows.double()).sum(), leaf)
    return relevance.to(rows.dtype)


def _moved(node: Node, owner: Node, twins: dict[Node, Any], env: Mapping[Node, Any], facts: Facts) -> Any:
    """The float twin of ``node``; None where the node does not hold values of the input."""
    if node in twins:
        return twins[node]
    twins[node] = None
    if owner not in facts.input_values.get(node, ()):
        return None
    spec = facts.ops.get(node)
    assert spec is not None
    operands = set(declared(node, spec).values())
    moving = {n: t for n in operands if (t := _moved(n, owner, twins, env, facts)) is not None}
    if not moving:
        twins[node] = _picked(node, owner, twins, env, facts)
    elif spec.kind == "movement" and spec.extra.get("form") != "cast":
        overwritten = bind(node).get("self")  # gives shape and dtype to what is written, even if its values are lost
        nodes = operands | ({overwritten} if isinstance(overwritten, Node) else set())
        zeros = {n: pytree.tree_map(lambda t: torch.zeros_like(t, dtype=torch.float64), env[n]) for n in nodes}
        moved, empty = _call(node, {**zeros, **moving}, env), _call(node, zeros, env)
        twins[node] = pytree.tree_map(torch.sub, moved, empty)  # literal values cancel
    elif isinstance(env[node], (tuple, list)):
        twins[node] = _selected(node, next(iter(moving.values())), env[node])
    elif spec.reduces:  # a hash of several ids belongs to each of them equally
        zeros = {n: torch.zeros_like(env[n], dtype=torch.float64) for n in operands}
        count = next(iter(moving.values())).numel() / max(env[node].numel(), 1)
        twins[node] = _call(node, {**zeros, **moving}, env) / count
    else:  # arithmetic: an id plus an offset still belongs to that id
        twins[node] = torch.stack([t.expand(env[node].shape) for t in moving.values()]).mean(0)
    return twins[node]


def _selected(node: Node, twin: Tensor, results: Any) -> tuple[Tensor, ...] | None:
    """Twins of the results (values, positions) of sort, top-k and the like; the twin of positions is zero."""
    dim, positions = bind(node).get("dim"), results[1] if len(results) == 2 else None
    if not isinstance(dim, int) or not isinstance(positions, Tensor):
        return None
    squeezed = positions.dim() < twin.dim()
    index = positions.unsqueeze(dim) if squeezed else positions
    values = twin.gather(dim, index)
    return (values.squeeze(dim) if squeezed else values, torch.zeros_like(positions, dtype=torch.float64))


def _picked(node: Node, owner: Node, twins: dict[Node, Any], env: Mapping[Node, Any], facts: Facts) -> Tensor | None:
    """The twin of integers looked up in a table: the mean of the twins of its indices."""
    spec = facts.ops.get(node)
    lookup = None if spec is None else find_lookup(node, spec)
    if lookup is None:
        return None
    shape = env[node].shape
    features = [1] * (len(shape) - lookup.dim - lookup.depth)
    moving = [t for n in lookup.indices if (t := _moved(n, owner, twins, env, facts)) is not None]
    grown = [t.reshape([*[1] * (lookup.depth - t.dim()), *t.shape, *features]).expand(shape) for t in moving]
    return torch.stack(grown).mean(0) if grown else None


def _call(node: Node, replaced: dict[Node, Any], env: Mapping[Node, Any]) -> Any:
    def fetch(n: Node) -> Any:
        return replaced[n] if n in replaced else env[n]

    return node.target(*torch.fx.map_arg(node.args, fetch), **torch.fx.map_arg(dict(node.kwargs), fetch))  # type: ignore
