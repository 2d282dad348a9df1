"""Packed sequences of a recorded run as lookups: their kernels have no fake counterparts that know how long they are.

How many rows a packed sequence has is a decision of the run that was recorded, so it is fixed here. Which rows these
are is computed from the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from lrp_fx.graph.copies import splice

aten = torch.ops.aten


def _rows(there: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(steps, samples), both (count,): where a (steps, samples) tensor of booleans is true, in order of steps."""
    places = torch.arange(there.numel(), device=there.device)
    flat = torch.where(there.flatten(), places, there.numel()).sort().values[:count]
    return flat // there.shape[1], flat % there.shape[1]


def _pack(results: Sequence[Tensor], padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Rows of a padded sequence that are there, step by step, and how many each step has."""
    rows, sizes = results
    steps = torch.arange(sizes.shape[0], device=lengths.device)
    there = lengths[None, :] > steps[:, None]
    step, sample = (index.to(padded.device) for index in _rows(there, rows.shape[0]))
    return padded[(sample, step) if batch_first else (step, sample)], there.sum(1)


def _pad(
    results: Sequence[Tensor], rows: Tensor, sizes: Tensor, batch_first: bool, padding: Any, total: int = 0
) -> tuple[Tensor, Tensor]:
    """A padded sequence of packed rows, and the lengths in it."""
    padded, lengths = results
    there = torch.arange(lengths.shape[0], device=sizes.device)[None, :] < sizes[:, None]
    step, sample = (index.to(rows.device) for index in _rows(there, rows.shape[0]))
    filled = torch.full(padded.shape, padding, dtype=rows.dtype, device=rows.device)
    return filled.index_put((sample, step) if batch_first else (step, sample), rows), there.sum(0)


_SPELLED: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    aten._pack_padded_sequence.default: _pack,
    aten._pad_packed_sequence.default: _pad,
}


def spell_packed(owner: fx.GraphModule) -> None:
    """Replace the kernels of packed sequences whose sizes were recorded in the values that are noted in the graph."""
    for node in list(owner.graph.nodes):
        function = _SPELLED.get(node.target) if node.op == "call_function" else None
        if function is None or not _is_sized(node.meta.get("val")):
            continue
        tensors = [n for n in node.args if isinstance(n, Node)]
        with FakeTensorMode() as mode:
            examples = [_like(n.meta["val"]) for n in tensors]
            results = [_like(v) for v in node.meta["val"]]
        for user in list(node.users):
            body = _traced(function, results, node, examples, user.args[1], mode)
            result, _ = splice(owner, body, tensors, user)
            (value,) = pytree.tree_leaves(result)
            user.replace_all_uses_with(value)
            owner.graph.erase_node(user)
        owner.graph.erase_node(node)


def _traced(
    function: Callable[..., tuple[Tensor, Tensor]],
    results: Sequence[Tensor],
    node: Node,
    examples: list[Tensor],
    which: Any,
    mode: FakeTensorMode,
) -> fx.GraphModule:
    def run(values: list[Tensor]) -> Tensor:
        feed = iter(values)
        arguments = [next(feed) if isinstance(a, Node) else a for a in node.args]
        return function(results, *arguments)[which]

    with mode:
        body = make_fx(run)(examples)
    body.graph.eliminate_dead_code()
    return body


def _is_sized(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(n, int) for v in value for n in v.shape)


def _like(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)
