"""Facts about an output's classes: whether they are probabilities, and which input's token ids they predict."""

from __future__ import annotations

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Facts, Source
from lrp_fx.capture import Captured
from lrp_fx.graph.operands import is_float

_UNCHANGED = ("reshape", "copy", "cast")


def are_shares(output: Node, facts: Facts) -> bool:
    """Whether a node yields probabilities (of a softmax), not logits or log-probabilities."""
    node = output
    while (spec := facts.ops.get(node) if node.op == "call_function" else None) is not None and spec.kind == "movement":
        node = node.all_input_nodes[0]
    return spec is not None and "distribution" in spec.extra and bool(spec.extra.get("positive"))


def token_inputs(captured: Captured, facts: Facts, classes: int) -> tuple[str, ...]:
    """Names of the (B, S) id inputs whose embedding table has a row for each class; a decoder's first.

    Such a model predicts tokens of the vocabulary that it reads.
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
    """Number of rows of the table that sequences of ids look up; None for other sources."""
    if source.indices is None or source.dim or source.depth < 2:
        return None
    tables = [n.meta.get("val") for n in source.node.all_input_nodes if is_float(n)]
    return next((int(t.shape[0]) for t in tables if isinstance(t, torch.Tensor) and t.dim() == 2), None)


def _behind_views(node: Node, facts: Facts) -> Node:
    """The node before views and casts: the same entries, in the same order."""
    while facts.ops.form(node) in _UNCHANGED and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
