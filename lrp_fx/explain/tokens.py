"""Relevance of integer inputs: from the rows that token ids picked back to the positions of the ids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis import Source
from lrp_fx.errors import InputError, locate


def row_relevance(relevance: Tensor, indices: Tensor) -> Tensor:
    """Sum the relevance of every picked row over its features: ``indices.shape + features -> indices.shape``."""
    return relevance.flatten(indices.dim()).sum(-1) if relevance.dim() > indices.dim() else relevance


def to_input(source: Source, picked: Tensor, env: dict[Node, Tensor]) -> Tensor:
    """Carry relevance at the indices of a lookup back to the input they were moved from.

    Integers have no gradient, so a float twin of the input, one per entry, is moved through the same operators
    (slices, shifts, padding, offsets); the transpose of that linear map is the answer. Where the indices are the input
    itself, so is the relevance.

    Args:
        picked: relevance per index, the shape of ``source.indices``.
        env: integer values of the nodes between input and indices.
    """
    assert source.indices is not None
    if source.indices is source.input:
        return picked
    with torch.enable_grad():
        leaf = torch.ones_like(env[source.input], dtype=torch.float64).requires_grad_()
        twin = _moved(source.indices, source.input, leaf, env, {})
        (relevance,) = torch.autograd.grad((twin * picked.double()).sum(), leaf)
    return relevance.to(picked.dtype)


def _moved(
    node: Node, root: Node, leaf: Tensor, env: dict[Node, Tensor], memo: dict[Node, Tensor | None]
) -> Tensor | None:
    """The float twin of ``node``; None where it does not hold the input's values."""
    if node is root:
        return leaf
    if node in memo:
        return memo[node]
    memo[node] = None
    if node.op != "call_function" or not isinstance(env[node], Tensor) or env[node].dtype is torch.bool:
        return None
    twins = {n: _moved(n, root, leaf, env, memo) for n in node.all_input_nodes}
    held = [t for t in twins.values() if t is not None]
    if not held:
        return None
    name = str(getattr(node.target, "_opname", node.target))
    if name in _ARITHMETIC or (held[0].shape == env[node].shape and len(held) == 1 and name in _POINTWISE):
        memo[node] = held[0].expand(env[node].shape)
        return memo[node]

    def twin(n: Node) -> object:
        if twins.get(n) is not None:
            return twins[n]
        val = env[n]
        if isinstance(val, Tensor) and val.dtype is not torch.bool and name in _MERGES and n in _values(node):
            return torch.zeros_like(val, dtype=torch.float64)
        return val

    try:
        args = torch.fx.map_arg(node.args, twin)
        kwargs = {k: v for k, v in torch.fx.map_arg(dict(node.kwargs), twin).items() if k != "dtype"}
        memo[node] = node.target(*_fill_zero(name, args), **kwargs)
    except Exception as error:
        raise InputError(f"token relevance cannot be carried back through {locate(node)}: {error}") from error
    return memo[node]


_ARITHMETIC = {
    "add",
    "sub",
    "mul",
    "remainder",
    "clamp",
    "clamp_min",
    "clamp_max",
    "to",
    "_to_copy",
    "type_as",
    "clone",
}
_POINTWISE = {"floor_divide", "div", "abs", "neg"}
_MERGES = {
    "cat",
    "where",
    "slice_scatter",
    "select_scatter",
    "masked_fill",
    "index_put",
    "scatter",
    "stack",
    "masked_scatter",
}


def _values(node: Node) -> set[Node]:
    """Operands of a merge that are data (not masks or indices)."""
    name = str(getattr(node.target, "_opname", node.target))
    if name in ("cat", "stack"):
        return set(node.args[0])
    picks = {"where": (1, 2), "index_put": (0, 2), "scatter": (0, 3), "masked_fill": (0, 2), "masked_scatter": (0, 2)}
    return {node.args[i] for i in picks.get(name, (0, 1)) if i < len(node.args) and isinstance(node.args[i], Node)}


def _fill_zero(name: str, args: tuple) -> tuple:
    """A literal that overwrites entries holds nothing of the input: its twin is 0."""
    literal = {"masked_fill": 2, "constant_pad_nd": 2, "where": 2, "scatter": 3}.get(name)
    if literal is None or literal >= len(args) or isinstance(args[literal], Tensor):
        return args
    return (*args[:literal], 0.0, *args[literal + 1 :])
