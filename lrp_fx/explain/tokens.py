"""Relevance of integer inputs: from the rows that token ids picked back to the positions of the ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis import Source
from lrp_fx.analysis.operands import declared
from lrp_fx.errors import InputError, locate
from lrp_fx.optable import OpTable


def row_relevance(source: Source, relevance: Tensor, indices: Tensor) -> Tensor:
    """Sum the relevance of every picked row over its features -> the shape of ``indices``.

    The dimensions of the indices begin at ``source.dim``; all others are features.
    """
    if relevance.dim() <= indices.dim():
        return relevance
    before = list(range(source.dim))
    return relevance.movedim(before, [d - source.dim for d in before]).flatten(indices.dim()).sum(-1)


def to_input(source: Source, picked: Tensor, env: dict[Node, Any], ops: OpTable) -> Tensor:
    """Carry relevance at the indices of a lookup back to the input they were moved from.

    Integers have no gradient, so a float twin of the input, one per entry, is moved through the same operators
    (slices, shifts, padding, offsets); the transpose of that linear map is the answer. Where the indices are the input
    itself, so is the relevance.

    Args:
        source: a source with indices.
        picked: relevance per index, the shape of ``source.indices``.
        env: values of the nodes between input and indices.
        ops: which operands an operator moves.
    """
    assert source.indices is not None
    if source.indices is source.input:
        return picked
    with torch.enable_grad():
        leaf = torch.ones_like(env[source.input], dtype=torch.float64).requires_grad_()
        twin = _moved(source.indices, {source.input: leaf}, env, ops)
        if twin is None:
            raise InputError(f"the token ids of '{source.input.name}' are lost on the way to {locate(source.node)}")
        (relevance,) = torch.autograd.grad((twin * picked.double()).sum(), leaf)
    return relevance.to(picked.dtype)


def _moved(node: Node, twins: dict[Node, Tensor | None], env: dict[Node, Any], ops: OpTable) -> Tensor | None:
    """The float twin of ``node``; None where it does not hold the input's values."""
    if node in twins:
        return twins[node]
    twins[node] = None
    spec = ops.get(node) if node.op == "call_function" else None
    if spec is None or not isinstance(env[node], Tensor) or env[node].dtype is torch.bool:
        return None
    operands = set(declared(node, spec).values())
    held = {n: t for n in operands if (t := _moved(n, twins, env, ops)) is not None}
    if held and spec.kind == "movement" and node.target.__name__.split(".")[0] not in _CASTS:  # type: ignore[union-attr]
        zeros = {n: torch.zeros_like(env[n], dtype=torch.float64) for n in operands}
        twins[node] = _call(node, {**zeros, **held}, env) - _call(node, zeros, env)  # literals that overwrite cancel
    elif held and spec.reduces:  # a hash of several ids is of each of them alike
        zeros = {n: torch.zeros_like(env[n], dtype=torch.float64) for n in operands}
        count = next(iter(held.values())).numel() / max(env[node].numel(), 1)
        twins[node] = _call(node, {**zeros, **held}, env) / count
    elif held:  # arithmetic: an id plus an offset is still that id
        twins[node] = torch.stack([t.expand(env[node].shape) for t in held.values()]).mean(0)
    return twins[node]


_CASTS = ("to", "_to_copy", "type_as")


def _call(node: Node, replaced: dict[Node, Tensor], env: dict[Node, Any]) -> Tensor:
    def fetch(n: Node) -> Any:
        return replaced[n] if n in replaced else env[n]

    return node.target(*torch.fx.map_arg(node.args, fetch), **torch.fx.map_arg(dict(node.kwargs), fetch))  # type: ignore
