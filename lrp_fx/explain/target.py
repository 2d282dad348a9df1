"""Which scalar of the output is explained, one per sample."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.explain.reading import Reading


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


@dataclass(frozen=True)
class Pixels:
    """The logits of one class, summed over the pixels (or steps) at which this class wins.

    Of an output (B, classes, H, W), (B, classes, T), (B, H, W, classes). A sample in which it wins nowhere has a target
    of 0; none in the whole batch is a :class:`lrp_fx.errors.TargetError`. A single channel wins where it is positive.

    Attributes:
        chosen: class index, or a (B,) tensor of them.
        axis: the dimension of the output that counts classes; None for what the graph tells.
    """

    chosen: int | Tensor
    axis: int | None = None


Target = int | Tensor | Sequence[int] | tuple[Any, ...] | Callable[[Any], Tensor] | Contrast | Pixels | None


def normal(target: Target) -> Target:
    """A target in one spelling: integers of any library become ``int``, sequences of them (B,) tensors.

    Raises:
        TargetError: for what is no target: a string, a boolean, a fraction, an empty sequence.
    """
    if isinstance(target, Contrast):
        return Contrast(_index(target.chosen), _index(target.foil))
    if isinstance(target, Pixels):
        chosen = _index(target.chosen)
        if chosen is None:
            raise TargetError("lrp_fx.Pixels takes a class, or one per sample")
        return Pixels(chosen, target.axis)
    if isinstance(target, tuple):
        if not target:
            raise TargetError("target () has no index: give one for each dimension of the output but the batch")
        return tuple(_entry(part) for part in target)
    if callable(target) and not isinstance(target, Tensor):
        return target
    return _index(target)


def normal_targets(targets: Sequence[Target]) -> list[Target]:
    """Several targets, each in one spelling.

    Raises:
        TargetError: for none at all, for what is no sequence of targets, and as :func:`normal`.
    """
    if isinstance(targets, (str, bytes)) or not isinstance(targets, Iterable):
        raise TargetError(f"targets={targets!r}: give a list of targets")
    listed = [normal(target) for target in targets]
    if not listed:
        raise TargetError("targets=[] names no target: give at least one")
    return listed


def _entry(part: Any) -> Any:
    if part is None:
        raise TargetError("a tuple target names one entry of the output: None is no index of one")
    return part if isinstance(part, slice) or part is Ellipsis else _index(part)


def _index(value: Any) -> int | Tensor | None:
    """None, an ``int``, or a tensor of integers with at most one dimension."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        if isinstance(value, (bool, str, bytes)):
            raise TargetError(f"target {value!r} is no class: give an int or a (B,) integer tensor")
        with contextlib.suppress(TypeError):
            return operator.index(value)
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TargetError(f"target {value!r} is no target: {_CHOICES}") from error
    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool or value.dim() > 1:
        raise TargetError(
            f"target must be an int or a (B,) integer tensor, not {value.dtype} of shape {tuple(value.shape)}"
        )
    if value.numel() == 0:
        raise TargetError("target is empty: give a class, or one per sample")
    return value


_CHOICES = "give a class, a (B,) tensor of classes, a tuple of indices, a Contrast, Pixels, or a callable"


def spoken(target: Target) -> str:
    """A target in words, for what is written about an explanation; nothing for the model's own answer."""
    if target is None:
        return ""
    if isinstance(target, Tensor):
        return str(target.tolist())
    if isinstance(target, (Contrast, Pixels)):
        parts = ", ".join(f"{name}={spoken(value)}" for name, value in vars(target).items() if value is not None)
        return f"{type(target).__name__}({parts})"
    if isinstance(target, tuple):
        return f"({', '.join(spoken(part) for part in target)})"
    return getattr(target, "__qualname__", None) or str(target)


def padding_masks(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The (B, S) inputs whose name says that they are padding masks."""
    return {n: v for n, v in inputs.items() if isinstance(v, Tensor) and "mask" in n and v.dim() == 2}


def shown(mask: Tensor) -> Tensor:
    """The positions that a padding mask shows: where it is not 0; where it is 0, if it is added to scores (0, -1e9).

    Floating values of other kinds hide nothing: such an input is no mask, whatever it is called.
    """
    if not mask.is_floating_point():
        return mask.bool()
    added, binary = (mask <= 0).all(), ((mask == 0) | (mask == 1)).all()
    return torch.where(added, mask == 0, (mask != 0) | ~binary)


def last_positions(length: int, batch: int, masks: Mapping[str, Tensor]) -> Tensor:
    """Index of each sample's last non-padding position, from the (B, S) mask among the inputs; else the last one.

    A decoder's own mask wins over an encoder's; a mask of another length belongs to another sequence and is ignored.
    """
    for name in sorted(masks, key=lambda n: "decoder" not in n):
        mask = masks[name]
        if mask.shape[1] == length and mask.shape[0] == batch:  # (in this order: sizes that are compared depend on it)
            positions = torch.arange(length, device=mask.device)
            return torch.where(shown(mask), positions, -1).amax(-1).clamp(min=0)
    return torch.full((batch,), length - 1)


def select(output: Any, target: Target, masks: Mapping[str, Tensor], reading: Reading) -> Tensor:
    """The (B,) scalars to explain.

    Args:
        output: the model's output.
        target: None (each sample's largest logit, at the last non-padding position of a sequence), a class index, a
            (B,) tensor of class indices, a :class:`Contrast`, :class:`Pixels`, a tuple index into the non-batch
            dimensions (or into all of them: one sample), or a callable.
        masks: inputs whose name says they are padding masks.
        reading: how the output is read.

    Raises:
        TargetError: for an index out of range, a wrong number of targets, a callable that returns another shape, and a
            class where the output has several values per class.
    """
    target = normal(target)
    if callable(target) and not isinstance(target, Tensor):
        return _from_callable(output, target)
    logits = reading.logits(output)
    if logits.dim() == 0:
        logits = logits.reshape(1)
    if isinstance(target, Pixels):
        return check_won(target, at_pixels(logits, target, masks, reading))
    if isinstance(target, Contrast):
        return _contrast(by_class(logits, masks, reading), target)
    if isinstance(target, tuple):
        return _from_tuple(logits, target)
    if logits.dim() == 1:
        return _one_per_sample(logits, target)
    if target is None and reading.kind(logits) == "dense":
        return largest(logits.flatten(1))
    logits = by_class(logits, masks, reading)
    return logits[torch.arange(logits.shape[0], device=logits.device), _classes(logits, target)]


def largest(logits: Tensor) -> Tensor:
    """(B, n) -> the largest of each sample, (B,)."""
    return logits[torch.arange(logits.shape[0], device=logits.device), logits.detach().argmax(-1)]


def by_class(logits: Tensor, masks: Mapping[str, Tensor], reading: Reading) -> Tensor:
    """(B, classes): of a sequence, the logits at its last position.

    Raises:
        TargetError: for an output in which a class has several values, or may have.
    """
    kind = reading.kind(logits)
    if kind == "single":
        raise TargetError(f"the output has one value per sample (shape {tuple(logits.shape)}): nothing to choose from")
    if kind == "sequence":
        positions = last_positions(logits.shape[1], logits.shape[0], masks).to(logits.device)
        return at_positions(logits, positions[:, None]).squeeze(1)
    if kind != "classes":
        raise TargetError(_many_values(logits, reading))
    return logits


def _many_values(logits: Tensor, reading: Reading) -> str:
    """What to choose from where a class, or None, says too little."""
    shape = tuple(logits.shape)
    indices = [f"i{axis}" for axis in range(1, len(shape))]
    if reading.kind(logits) == "unknown":
        told, pixels = "its graph does not tell which dimension counts classes", "Pixels(class, axis=...)"
    else:
        axis = int(reading.axis or 0)
        told = f"dimension {axis} counts classes (0 to {shape[axis] - 1}), and each has many values"
        indices[axis - 1], pixels = "class", "Pixels(class)"
    return (
        f"a class says too little of an output of shape {shape}: {told}. Choose target=({', '.join(indices)}) for one "
        f"entry, target=lrp_fx.{pixels} for the sum over the pixels or steps where the class wins, or a callable "
        "output -> (B,)"
    )


def at_pixels(
    logits: Tensor, target: Pixels, masks: Mapping[str, Tensor], reading: Reading, chosen: Tensor | None = None
) -> Tensor:
    """(B,) logits of a class, summed over the pixels or steps where it wins.

    Args:
        logits: (B, ...) with a class axis.
        target: the target.
        masks: padding masks.
        reading: how the output is read.
        chosen: (B,) classes in place of the target's, where these are inputs of a graph.

    Raises:
        TargetError: without a known class axis, for a class out of range, and for a sequence with a padding mask.
    """
    axis = target.axis if target.axis is not None else reading.axis
    if axis is None and reading.kind(logits) == "sequence":
        axis = 2
    rank = logits.dim()
    if rank < 3 or axis is None or axis % rank == 0:
        raise TargetError(
            f"Pixels sums over the pixels or steps of an output, of which dimension counts classes; that of shape "
            f"{tuple(logits.shape)} has no others, or its graph does not tell: give Pixels(class, axis=...)"
        )
    if any(m.shape[1] == logits.shape[1] for m in masks.values()) and axis % rank == 2 and rank == 3:
        raise TargetError("Pixels would count padding as steps: give a callable output -> (B,) that leaves it out")
    moved = logits.movedim(axis, -1).flatten(1, -2)
    classes = moved.shape[-1]
    if chosen is None:
        chosen = _classes(moved[:, 0], target.chosen)
    index = (chosen % classes)[:, None, None].expand(-1, moved.shape[1], 1)
    values = moved.gather(2, index).squeeze(2)
    wins = values.detach() > 0 if classes == 1 else moved.detach().argmax(-1) == index.squeeze(2)
    return torch.where(wins, values, 0.0).sum(-1)


def check_won(target: Target, chosen: Tensor) -> Tensor:
    """``chosen``, if it is of a class that wins anywhere.

    Raises:
        TargetError: if it is of one that does not.
    """
    if isinstance(target, Pixels) and not chosen.is_meta and not bool(chosen.any()):
        index = target.chosen.tolist() if isinstance(target.chosen, Tensor) else target.chosen
        raise TargetError(
            f"class {index} wins at no pixel or step, in no sample: nothing would be explained. Choose another class, "
            "or a callable output -> (B,) that sums its logits anyhow"
        )
    return chosen


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


def _one_per_sample(logits: Tensor, target: int | Tensor | Sequence[int] | None) -> Tensor:
    if target is not None:
        check_range(target, logits.shape[0], 1)
    return logits


def _classes(logits: Tensor, target: int | Tensor | Sequence[int] | None) -> Tensor:
    batch, classes = logits.shape
    if target is None:
        return logits.detach().argmax(-1)
    index = check_range(target, batch, classes).to(logits.device)
    return (index % classes).expand(batch)


def check_range(target: Any, batch: int, classes: int | None) -> Tensor:
    """A class, or one per sample, as a tensor; ``classes`` is None where their number is not known.

    Raises:
        TargetError: for a wrong number of them, or one out of range.
    """
    index = torch.as_tensor(target)
    if index.dim() == 1 and index.shape[0] != batch:
        raise TargetError(f"{index.shape[0]} targets for a batch of {batch}: give one per sample")
    if classes is not None and bool(((index >= classes) | (index < -classes)).any()):
        raise TargetError(
            f"target {index.tolist()} is out of range: the output has {classes} classes (0 to {classes - 1})"
        )
    return index


def _from_tuple(logits: Tensor, target: tuple[Any, ...]) -> Tensor:
    if len(target) not in (logits.dim() - 1, logits.dim()):
        raise TargetError(
            f"target {target} has {len(target)} indices, the output {tuple(logits.shape)}: give {logits.dim() - 1} "
            f"(the non-batch dimensions) or {logits.dim()} (one sample)"
        )
    batched = len(target) == logits.dim() - 1
    rows = (torch.arange(logits.shape[0], device=logits.device),) if batched else ()
    try:
        for part, size in zip(target, logits.shape[len(rows) :], strict=True):
            if isinstance(part, (int, Tensor)):
                check_range(part, logits.shape[0], size)
        chosen = logits[rows + target]
    except (IndexError, TypeError, TargetError) as error:
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
