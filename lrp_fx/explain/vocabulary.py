"""What the graph says of an output's classes: whether they are shares of a softmax, and which inputs they say next."""

from __future__ import annotations

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Source
from lrp_fx.capture import Captured
from lrp_fx.graph.operands import is_float

_UNCHANGED = ("reshape", "copy", "cast")


def are_shares(output: Node, facts: Facts) -> bool:
    """Whether a node yields shares of a softmax, not logits or logarithms of shares."""
    node = output
    while (spec := facts.ops.get(node) if node.op == "call_function" else None) is not None and spec.kind == "movement":
        node = node.all_input_nodes[0]
    return spec is not None and "distribution" in spec.extra and bool(spec.extra.get("positive"))


def token_inputs(captured: Captured, facts: Facts, classes: int) -> tuple[str, ...]:
    """Names of the inputs of (B, S) ids that pick from a table with a row for each class; a decoder's first.

    Such a model says the tokens that it reads.
    """
    names = dict(zip(captured.placeholders, captured.names, strict=True))
    owners = {
        owner: None
        for source in facts.sources
        if _rows(source) == classes
        for owner, indices in source.picks
        if owner.meta["val"].dim() == 2 and _behind_views(indices, facts) is owner
    }
    return tuple(sorted((names[owner] for owner in owners), key=lambda name: "decoder" not in name))


def _rows(source: Source) -> int | None:
    """How many rows the table of a lookup of sequences of ids has; None for other sources."""
    if source.indices is None or source.dim or source.depth < 2:
        return None
    tables = [n.meta.get("val") for n in source.node.all_input_nodes if is_float(n)]
    return next((int(t.shape[0]) for t in tables if isinstance(t, torch.Tensor) and t.dim() == 2), None)


def _behind_views(node: Node, facts: Facts) -> Node:
    """What a node has its entries from, in their order."""
    while facts.ops.form(node) in _UNCHANGED and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
