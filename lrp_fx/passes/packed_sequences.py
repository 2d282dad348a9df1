"""Packed sequences of a recorded run as lookups: on fake tensors their kernels do not know the number of rows.

The number of rows of a packed sequence is fixed by the recorded run. The indices of the rows are computed from the
lengths.
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


def _rows(present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(steps, samples), both (count,): indices of the true entries of a (steps, samples) tensor, in order of steps."""
    places = torch.arange(present.numel(), device=present.device)
    flat = torch.where(present.flatten(), places, present.numel()).sort().values[:count]
    return flat // present.shape[1], flat % present.shape[1]


def _pack(results: Sequence[Tensor], padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The rows of a padded sequence without its padding, step by step; the number of rows of each step."""
    rows, sizes = results
    steps = torch.arange(sizes.shape[0], device=lengths.device)
    present = lengths[None, :] > steps[:, None]
    step, sample = (index.to(padded.device) for index in _rows(present, rows.shape[0]))
    return padded[(sample, step) if batch_first else (step, sample)], present.sum(1)


def _pad(
    results: Sequence[Tensor], rows: Tensor, sizes: Tensor, batch_first: bool, padding: Any, total: int = 0
) -> tuple[Tensor, Tensor]:
    """The padded sequence of packed rows; its lengths."""
    padded, lengths = results
    present = torch.arange(lengths.shape[0], device=sizes.device)[None, :] < sizes[:, None]
    step, sample = (index.to(rows.device) for index in _rows(present, rows.shape[0]))
    filled = torch.full(padded.shape, padding, dtype=rows.dtype, device=rows.device)
    return filled.index_put((sample, step) if batch_first else (step, sample), rows), present.sum(0)


_SPELLED: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    aten._pack_padded_sequence.default: _pack,
    aten._pad_packed_sequence.default: _pad,
}


def spell_packed(owner: fx.GraphModule) -> None:
    """Replace the kernels of packed sequences by lookups, if the captured values have fixed sizes."""
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
