"""Comparison of a lowered graph with the eager sweep on example inputs, before it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call
from lrp_fx.capture.agreement import difference
from lrp_fx.errors import LoweringError, type_and_line
from lrp_fx.explain.target import padding_masks
from lrp_fx.lowering.dynamic_shapes import ShapeGuards
from lrp_fx.results import Attribution

_ENOUGH = 16  #: size of a dynamic dimension in the comparison

Explain = Callable[[Call], Attribution]


def agree(
    tested: Explain, expected: Explain, calls: Sequence[Call], most: float, outputs: bool, skipped: Sequence[str] = ()
) -> bool:
    """Compare two ways to explain on the first of these calls that ``expected`` explains; False if there is none.

    Args:
        tested: the lowered graph.
        expected: the eager sweep.
        calls: example inputs.
        most: tolerance, relative to the largest entry of each tensor.
        outputs: compare the model's outputs, too.
        skipped: names of tensors that are not compared.

    Raises:
        LoweringError: naming the tensors that differ, or the error of ``tested``.
    """
    if any(tensor.is_meta for call in calls for tensor in call.tensors.values()):
        return False
    for call in calls:
        with contextlib.suppress(Exception):  # a smaller call may lack the target's position
            reference = named_tensors(expected(call), outputs)
            break
    else:
        return False
    try:
        results = named_tensors(tested(call), outputs)
    except Exception as error:
        reason = type_and_line(error)
        raise LoweringError(f"the lowered graph does not run on its own example: {reason}. {_REMEDY}") from error
    scale = float(reference["the target"].abs().max()) * torch.finfo(reference["the target"].dtype).eps ** 0.5
    compared = [n for n in reference if n in results and n not in skipped]
    significant = [n for n in compared if not _is_rounding(scale, reference[n], results[n])]
    off = {name: difference([reference[name]], [results[name]]) for name in significant}
    unlike = [f"{name} by {by:.1%}" for name, by in off.items() if not by <= most]
    unlike += [f"{name} is missing" for name in reference if name not in results]
    if unlike:
        raise LoweringError(
            f"the lowered graph does not explain its own example as explain() does: {'; '.join(unlike)}. {_REMEDY}"
        )
    return True


def _is_rounding(scale: float, *tensors: Tensor) -> bool:
    """Whether all entries are rounding errors of 0, such as relevance of queries where all tokens are equal."""
    return all(bool((tensor.abs() <= scale).all()) for tensor in tensors)


_REMEDY = "Nothing was written. Remedy: use explain(), and report this model, please."


def named_tensors(explained: Attribution, outputs: bool) -> dict[str, Tensor]:
    """Name -> floating tensor of an explanation: target, relevance, latents, outputs."""
    tensors = {"target": explained.target, "relevance": explained.relevance, "latent": explained.latents}
    if outputs:
        tensors["output"] = explained.output
    leaves: Any = pytree.tree_flatten_with_path(tensors)[0]
    named = {f"the {path[0].key}{pytree.keystr(path[1:])}": leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor) and leaf.is_floating_point()}


def examples(call: Call, guards: ShapeGuards) -> list[Call]:
    """Calls to compare explanations on: a corner of this one along its dynamic dimensions, then the whole of it.

    Floating inputs that are one expanded value (an example of shapes alone) become random; no position is padding.
    """
    dims = guards.shapes.dims
    few = {str(d) for sizes in dims for d in sizes if isinstance(d, str) and d.isidentifier()}
    masks, feed, leaves, part = padding_masks(call.tensors), iter(dims), [], []
    for name, leaf in zip(call.names, call.leaves, strict=True):
        if isinstance(leaf, Tensor):
            leaf = _with_values(leaf, name in masks)
            corner = [slice(_ENOUGH if str(d) in few else None) for d in next(feed)]
            part.append(leaf[tuple(corner)])
        else:
            part.append(leaf)
        leaves.append(leaf)
    calls = [Call(call.names, tuple(leaves_of), call.key) for leaves_of in (part, leaves)]
    return [c for c in calls if guards.mismatch(list(c.tensors.values())) is None]


def _with_values(tensor: Tensor, mask: bool) -> Tensor:
    """The tensor; for one expanded value, random numbers (floating inputs) or ones (masks)."""
    if tensor.is_meta or tensor.numel() < 2 or any(tensor.stride()):
        return tensor
    if tensor.is_floating_point() and not mask:
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(tensor)
    return torch.ones_like(tensor) if mask else tensor
