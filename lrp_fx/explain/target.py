"""Which scalar of the output is explained, one per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.errors import TargetError


@dataclass(frozen=True)
class Contrast:
    """Why this class rather than that one: a difference of logits as the target.

    Attributes:
        chosen: class index, or a (B,) tensor of them; None for each sample's largest logit.
        foil: the class it is set against (index or (B,) tensor). None for all others, each weighed by its share of
            their softmax: z_c - sum_k p_k z_k / (1 - p_c), p held constant (softmax-contrastive, after CLRP, Gu et al.
            2018). Relevance sums to that difference, which means something where all logits are negative, too.
    """

    chosen: int | Tensor | None = None
    foil: int | Tensor | None = None


Target = int | Tensor | tuple[Any, ...] | Callable[[Any], Tensor] | Contrast | None


def find_logits(output: Any) -> Tensor:
    """The tensor a target indexes: ``output.logits`` where there is one, else the first floating tensor.

    Raises:
        TargetError: when the output has no floating tensor.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise TargetError("the output has no floating-point tensor to explain; pass target=callable(output) -> (B,)")


def padding_masks(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The (B, S) inputs whose name says that they are padding masks."""
    return {n: v for n, v in inputs.items() if isinstance(v, Tensor) and "mask" in n and v.dim() == 2}


def last_positions(length: int, batch: int, masks: Mapping[str, Tensor]) -> Tensor:
    """Index of each sample's last non-padding position, from the (B, S) mask among the inputs; else the last one.

    A decoder's own mask wins over an encoder's; a mask of another length belongs to another sequence and is ignored.
    """
    for name in sorted(masks, key=lambda n: "decoder" not in n):
        mask = masks[name]
        if mask.shape[1] == length and mask.shape[0] == batch:  # (in this order: sizes that are compared depend on it)
            positions = torch.arange(length, device=mask.device)
            return torch.where(mask.bool(), positions, -1).amax(-1).clamp(min=0)
    return torch.full((batch,), length - 1)


def select(output: Any, target: Target, masks: Mapping[str, Tensor]) -> Tensor:
    """The (B,) scalars to explain.

    Args:
        output: the model's output.
        target: None (each sample's largest logit, at the last non-padding position of a sequence), a class index, a
            (B,) tensor of class indices, a :class:`Contrast`, a tuple index into the non-batch dimensions (or into all
            of them: one sample), or a callable.
        masks: inputs whose name says they are padding masks.

    Raises:
        TargetError: for an index out of range, a wrong number of targets, or a callable that returns another shape.
    """
    if callable(target) and not isinstance(target, Tensor):
        return _from_callable(output, target)
    logits = find_logits(output)
    if isinstance(target, Contrast):
        return _contrast(by_class(logits, masks), target)
    if logits.dim() == 0:
        logits = logits.reshape(1)
    if isinstance(target, tuple):
        return _from_tuple(logits, target)
    if logits.dim() == 1:
        return _one_per_sample(logits, target)
    logits = by_class(logits, masks)
    return logits[torch.arange(logits.shape[0], device=logits.device), _classes(logits, target)]


def by_class(logits: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """(B, classes): of a sequence, the logits at its last position."""
    if logits.dim() < 2:
        raise TargetError(f"the output has one value per sample (shape {tuple(logits.shape)}): nothing to contrast")
    while logits.dim() > 2:
        positions = last_positions(logits.shape[1], logits.shape[0], masks).to(logits.device)
        logits = at_positions(logits, positions[:, None]).squeeze(1)
    return logits


def at_positions(logits: Tensor, positions: Tensor) -> Tensor:
    """(B, T, ...) at (B, n) positions -> (B, n, ...)."""
    return logits[torch.arange(logits.shape[0], device=logits.device)[:, None], positions]


def _contrast(logits: Tensor, target: Contrast) -> Tensor:
    rows = torch.arange(logits.shape[0], device=logits.device)
    chosen = _classes(logits, target.chosen)
    if target.foil is not None:
        return logits[rows, chosen] - logits[rows, _classes(logits, target.foil)]
    others = logits.detach().index_put((rows, chosen), torch.tensor(-float("inf"), dtype=logits.dtype))
    shares = torch.softmax(others, -1)
    weighed = torch.where(shares == 0, 0.0, logits * shares)  # 0 times a masked-out logit of -inf is 0
    return logits[rows, chosen] - weighed.sum(-1)


def _one_per_sample(logits: Tensor, target: Target) -> Tensor:
    if target is not None and (not isinstance(target, int) or target not in (0, -1)):
        raise TargetError(
            f"the output has one value per sample (shape {tuple(logits.shape)}): target must be None or 0"
        )
    return logits


def _classes(logits: Tensor, target: int | Tensor | None) -> Tensor:
    batch, classes = logits.shape
    if target is None:
        return logits.detach().argmax(-1)
    index = torch.as_tensor(target, device=logits.device)
    if index.is_floating_point() or index.dtype is torch.bool or index.dim() > 1:
        raise TargetError(
            f"target must be an int or a (B,) integer tensor, not {index.dtype} of shape {tuple(index.shape)}"
        )
    if index.dim() == 1 and index.shape[0] != batch:
        raise TargetError(f"{index.shape[0]} targets for a batch of {batch}: give one per sample")
    if bool((index >= classes).any()) or bool((index < -classes).any()):
        raise TargetError(
            f"target {index.tolist()} is out of range: the output has {classes} classes (0 to {classes - 1})"
        )
    return (index % classes).expand(batch)


def _from_tuple(logits: Tensor, target: tuple[Any, ...]) -> Tensor:
    if len(target) not in (logits.dim() - 1, logits.dim()):
        raise TargetError(
            f"target {target} has {len(target)} indices, the output {tuple(logits.shape)}: give {logits.dim() - 1} "
            f"(the non-batch dimensions) or {logits.dim()} (one sample)"
        )
    batched = len(target) == logits.dim() - 1
    rows = (torch.arange(logits.shape[0], device=logits.device),) if batched else ()
    try:
        chosen = logits[rows + target]
    except (IndexError, TypeError) as error:
        raise TargetError(
            f"target {target} does not index an output of shape {tuple(logits.shape)}: {error}"
        ) from error
    chosen = chosen.reshape(1) if chosen.dim() == 0 else chosen
    if chosen.dim() != 1:
        raise TargetError(f"target {target} selects shape {tuple(chosen.shape)}: select one scalar per sample")
    return chosen


def _from_callable(output: Any, target: Callable[[Any], Tensor]) -> Tensor:
    chosen = target(output)
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point() or chosen.dim() > 1:
        shape = tuple(chosen.shape) if isinstance(chosen, Tensor) else type(chosen).__name__
        raise TargetError(f"the target callable must return a floating (B,) tensor, not {shape}")
    return chosen.reshape(-1)
