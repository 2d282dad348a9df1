"""The class dimension of an output: the feature dimension of the last layer with weights.

The features of a linear layer are its last dimension, those of a convolution its channels. Operators between that layer
and the output move the dimension (transpose, reshape) or keep it in place (activations, resampling, sums).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from lrp_fx.analysis.facts import Facts
from lrp_fx.graph.dimensions import example_size, permutation
from lrp_fx.operators.table import OpSpec, bind

#: for each dimension of the output, the dimensions of a tensor that it comes from
Origins = tuple[frozenset[int], ...]

_NOWHERE: frozenset[int] = frozenset()


def class_axis(output: Node, facts: Facts) -> int | None:
    """The class dimension of ``output``; None if the graph does not determine it."""
    if not isinstance(output.meta.get("val"), torch.Tensor):
        return None
    rank = output.meta["val"].dim()
    start: Origins = tuple(frozenset({axis}) for axis in range(rank))
    rows = {source.node for source in facts.sources if source.indices is not None and source.dim == 0}
    answers: set[int | None] = set()
    seen, stack = set(), [(output, start)]
    while stack:
        node, origins = stack.pop()
        if (node, origins) in seen:
            continue
        seen.add((node, origins))
        features = _features(node, facts, node in rows)
        if features is not None:
            axes = [axis for axis in range(rank) if features in origins[axis]]
            if axes:
                answers.add(axes[0] if len(axes) == 1 else None)
            continue
        stack += [(operand, back) for operand, back in _behind(node, origins, facts) if any(back)]
    return answers.pop() if len(answers) == 1 else None


def _features(node: Node, facts: Facts, rows: bool) -> int | None:
    """The feature dimension of ``node`` if it is a layer, a lookup, or a softmax over classes; else None."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return None
    rank = val.dim()
    spec = facts.ops.get(node) if node.op == "call_function" else None
    if rows:
        return rank - 1
    if spec is None:
        return None
    if "distribution" in spec.extra:
        return int(bind(node)[spec.extra["distribution"]]) % rank
    layer, features = facts.layers.get(node), spec.extra.get("features")
    if layer is None:
        return None
    if features is not None:
        return rank + (-1 - len(bind(node)[features]) if isinstance(features, str) else features)
    if spec.extra.get("matrices"):
        return rank - 2 if layer.weight.name == spec.args[0] and rank > 1 else rank - 1
    return None


def _behind(node: Node, origins: Origins, facts: Facts) -> list[tuple[Node, Origins]]:
    """The operands that carry relevance, each with the dimensions that those of the output come from."""
    steps_back = []
    for slot, operand in facts.operands.get(node, {}).items():
        val = operand.meta.get("val")
        if isinstance(val, (tuple, list)):  # of several tensors the first
            val = val[0]
        if not isinstance(val, torch.Tensor):
            continue
        steps = _steps(node, facts.specs[node], slot.name, val)
        if steps is not None:
            back = tuple(
                frozenset().union(*(steps[a] for a in origin_axes if a < len(steps))) for origin_axes in origins
            )
            steps_back.append((operand, back))
    return steps_back


def _steps(node: Node, spec: OpSpec, slot: str, operand: torch.Tensor) -> list[frozenset[int]] | None:
    """For each dimension of a node's result, the dimensions of the operand that it comes from; None if unknown."""
    val = node.meta.get("val")
    val = val[0] if isinstance(val, (tuple, list)) else val
    if not isinstance(val, torch.Tensor):
        return None
    bound, rank, inner = bind(node), val.dim(), operand.dim()
    same = [frozenset({axis}) for axis in range(inner)]
    form, dims = spec.extra.get("form"), bound.get("dim")
    if form == "permute":
        return [frozenset({axis}) for axis in permutation(node)]
    if form == "reshape":
        return _reshaped(operand, val)
    if spec.kind == "movement" and isinstance(dims, int) and rank == inner + 1:
        same.insert(dims % rank, _NOWHERE)
        return same
    if spec.extra.get("matrices") and slot in spec.args and min(rank, inner) > 1:
        lost = inner - 1 if slot == spec.args[0] else inner - 2
        steps = [_NOWHERE] * (rank - inner) + same
        steps[lost + rank - inner] = _NOWHERE
        return steps
    if spec.kind == "attention":
        return [*same[:-2], _NOWHERE, same[-1]] if slot == "value" else None
    if rank == inner:
        return same
    if rank > inner:  # broadcast
        return [_NOWHERE] * (rank - inner) + same
    if dims is not None and not bound.get("keepdim"):  # reduced
        gone = {int(d) % inner for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
        return [s for axis, s in enumerate(same) if axis not in gone]
    return None


def _reshaped(before: torch.Tensor, after: torch.Tensor) -> list[frozenset[int]] | None:
    """The same for a reshape, which keeps, merges or splits dimensions; None if sizes do not match."""
    old, new = [example_size(n) for n in before.shape], [example_size(n) for n in after.shape]
    steps, i, j = [_NOWHERE] * len(new), 0, 0
    while i < len(old) and j < len(new):
        merged, split, old_size, new_size = [i], [j], old[i], new[j]
        while old_size != new_size:
            if old_size < new_size:
                i += 1
                if i == len(old):
                    return None
                merged.append(i)
                old_size *= old[i]
            else:
                j += 1
                if j == len(new):
                    return None
                split.append(j)
                new_size *= new[j]
        whole = frozenset(a for a in merged if old[a] != 1 or len(merged) == 1)
        for axis in split:
            steps[axis] = whole if new[axis] != 1 or len(split) == 1 else _NOWHERE
        i, j = i + 1, j + 1
    return steps
