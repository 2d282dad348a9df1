"""Attention masks that depend on sizes alone: causal masks become ``is_causal``, masks without effect are dropped.

With an explicit causal mask, fused attention reads a matrix and computes the scores above the diagonal, too. In eager
mode models often skip the mask, but this branch depends on values, so export cannot take it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.graph.dead_code import drop_dead
from lrp_fx.graph.reach import upstream
from lrp_fx.graph.unfuse_attention import FUSED
from lrp_fx.graph.values import Values
from lrp_fx.operators.schema import has_tag
from lrp_fx.operators.table import bind

aten = torch.ops.aten

_SMALL, _WHOLE = (
    8,
    2**31,
)  #: literals up to _SMALL would change the mask at the trial sizes; from _WHOLE on they mean "to the end"
_TRIED = (11, 19)  #: sequence lengths of the trials


def shorten_masks(graph: fx.Graph) -> None:
    """Replace masks of fused attention that are causal, or hide nothing, at all sizes.

    A mask qualifies if it is computed from sizes alone; its subgraph is run at two sizes. A literal, such as the width
    of a window, could make it differ at other sizes, so masks with such literals are left as they are.
    """
    kinds: dict[Node, str | None] = {}
    for node in [n for n in graph.nodes if n.target is FUSED]:
        bound = bind(node)
        mask = bound.get("attn_mask")
        if not isinstance(mask, Node) or bound.get("is_causal") or bound.get("dropout_p"):
            continue
        query, key = (bound[name].meta["val"].shape[-2] for name in ("query", "key"))
        if mask not in kinds:
            kinds[mask] = _kind(mask) if str(query) == str(key) else None
        if kinds[mask] is not None:
            node.args = (bound["query"], bound["key"], bound["value"])
            keywords = {k: v for k, v in bound.items() if k in ("scale", "enable_gqa") and v}
            node.kwargs = keywords | ({"is_causal": True} if kinds[mask] == "causal" else {})
    if any(kind is not None for kind in kinds.values()):
        drop_dead(graph)


def _kind(mask: Node) -> str | None:
    """The kind of a mask: "causal", "whole" (it hides nothing), or None for any other."""
    shape = mask.meta["val"].shape
    if len(shape) < 2 or str(shape[-1]) != str(shape[-2]):
        return None
    nodes = _upstream(mask)
    sized = [n for n in nodes if n.target is aten.sym_size.int]
    free = sorted({str(n.meta["val"]) for n in sized})
    if not all(_pure(n, bool(free)) for n in nodes):
        return None
    kinds = set()
    for length in _TRIED if free else (0,):
        sizes = {size: length + 2 * i for i, size in enumerate(free)}
        try:
            visible = _visible(_OnCPU({n: sizes[str(n.meta["val"])] for n in sized})[mask])
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        kinds.add("whole" if bool(visible.all()) else "causal" if torch.equal(visible, _below(visible)) else None)
    return kinds.pop() if len(kinds) == 1 else None


def _upstream(mask: Node) -> list[Node]:
    """Every node that ``mask`` depends on, without tensors of which only a size is read."""
    return list(upstream([mask], lambda n: () if n.target is aten.sym_size.int else n.all_input_nodes))


def _pure(node: Node, free: bool) -> bool:
    """Whether a node computes from sizes, without a literal that could matter at other sizes."""
    if node.op != "call_function" or has_tag(node, torch.Tag.nondeterministic_seeded):
        return False
    if node.target is aten.sym_size.int or not free:
        return True
    arguments = pytree.tree_leaves((node.args, dict(node.kwargs)))
    numbers = [n for n in arguments if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return all(abs(n) <= _SMALL or abs(n) >= _WHOLE for n in numbers)


class _OnCPU(Values):
    """Values on the CPU, whatever the device of the model."""

    def run(self, node: Node, args: Any, kwargs: Any) -> Any:
        on_cpu = {"device": torch.device("cpu")} if kwargs.get("device") is not None else {}
        return super().run(node, args, {**kwargs, **on_cpu})


def _visible(mask: Tensor) -> Tensor:
    """Boolean mask of visible pairs.

    Raises:
        ValueError: if the mask has a bias other than 0 and the lowest number or -inf.
    """
    if mask.dtype is torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min
    if bool((mask[~hidden] != 0).any()):
        raise ValueError("a bias")
    return ~hidden


def _below(visible: Tensor) -> Tensor:
    return torch.ones_like(visible).tril()
