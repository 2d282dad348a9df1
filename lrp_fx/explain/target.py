"""Selection of the explained scalar from the model's output, one per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target_types import (
    Contrast,
    Logit,
    LogProb,
    OfClass,
    Pixels,
    Probability,
    Span,
    Target,
    check_bounds,
    check_range,
    normal,
)


def padding_masks(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The (B, S) inputs with "mask" in their name."""
    return {n: v for n, v in inputs.items() if isinstance(v, Tensor) and "mask" in n and v.dim() == 2}


def shown(mask: Tensor) -> Tensor:
    """Visible positions of a padding mask: its nonzero entries; its zeros, if it is added to scores (0, -1e9).

    Other floating values hide nothing: such an input is not a padding mask, despite its name.
    """
    if not mask.is_floating_point():
        return mask.bool()
    added, binary = (mask <= 0).all(), ((mask == 0) | (mask == 1)).all()
    return torch.where(added, mask == 0, (mask != 0) | ~binary)


def beside(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs that the choice of a target may read: (B, S) padding masks and token ids."""
    flat = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and v.dim() == 2}
    return {n: v for n, v in flat.items() if "mask" in n or not (v.is_floating_point() or v.is_complex())}


def padding_mask(length: int, batch: int, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The padding mask for a sequence of this length; None without one.

    A decoder's mask is preferred to an encoder's. A mask of another length belongs to another sequence.
    """
    masks = padding_masks(inputs)
    for name in sorted(masks, key=lambda n: "decoder" not in n):
        mask = masks[name]
        if mask.shape[1] == length and mask.shape[0] == batch:  # (in this order: under tracing each one is a guard)
            return mask
    return None


def last_positions(length: int, batch: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B,) index of each sample's last position that is not padding; the last position without a padding mask."""
    mask = padding_mask(length, batch, inputs)
    if mask is None:
        return torch.full((batch,), length - 1)
    positions = torch.arange(length, device=mask.device)
    return torch.where(shown(mask), positions, -1).amax(-1).clamp(min=0)


def resolved(target: Target, reading: Reading) -> Target:
    """The normal form of a target for this output; None becomes the largest logit.

    Raises:
        TargetError: for an object that is no target, and for a probability where the model returns probabilities.
    """
    target = normal(target)
    if reading.shares and isinstance(target, (LogProb, Probability, Span)):
        raise TargetError(
            f"the model returns probabilities, and lrp_fx.{type(target).__name__} needs logits: explain the class "
            "itself, whose value is its probability, or let the model return its logits"
        )
    return Logit() if target is None else target


def select(output: Any, target: Target, inputs: Mapping[str, Tensor], reading: Reading) -> Tensor:
    """The (B,) scalars to explain.

    Args:
        output: the model's output.
        target: None (:func:`resolved`), a class index, a (B,) tensor of class indices, the name of a target or one of
            the types of :mod:`lrp_fx.explain.target_types`, a tuple index into the non-batch dimensions (or into all of
            them: one sample), or a callable. In a sequence, a class is taken at the last non-padding position.
        inputs: inputs that the choice may read (:func:`beside`).
        reading: where the output has its logits.

    Raises:
        TargetError: for an index out of range, a wrong number of targets, a callable that returns another shape, and a
            class where the output has several values per class.
    """
    target = resolved(target, reading)
    if callable(target) and not isinstance(target, Tensor):
        return _from_callable(output, target)
    logits = reading.logits(output)
    if logits.dim() == 0:
        logits = logits.reshape(1)
    if isinstance(target, Pixels):
        return check_won(target, at_pixels(logits, target, inputs, reading))
    if isinstance(target, Span):
        check_span(target, logits.shape[:2], inputs, reading)
        return of_span(logits, target.start, target.end, inputs, reading)
    if isinstance(target, tuple):
        return _from_tuple(logits, target)
    form: OfClass = target if isinstance(target, OfClass) else Logit(target)  # type: ignore[arg-type]
    if isinstance(form, Logit) and form.position is None:
        if logits.dim() == 1:
            return _one_per_sample(logits, form.chosen)
        if form.chosen is None and reading.kind(logits) == "dense":
            return largest(logits.flatten(1))
    if form.position is not None and reading.kind(logits) == "sequence":
        check_range(form.position, logits.shape[0], logits.shape[1], "position")
    return of_form(form, by_class(logits, inputs, reading, form.position))


def of_form(form: OfClass, logits: Tensor) -> Tensor:
    """Explained values (B,) from the logits (B, classes) at the target's position."""
    foil = getattr(form, "foil", None)
    return of_class(type(form), logits, _classes(logits, form.chosen), None if foil is None else _classes(logits, foil))


def one_position(
    target: Target, shape: tuple[int, int], inputs: Mapping[str, Tensor], reading: Reading
) -> tuple[OfClass, Tensor] | None:
    """(target, its positions (B,)) if a target reads one position per sample of a sequence of logits; else None.

    Args:
        target: as in :func:`select`.
        shape: batch and length of the logits.
        inputs: as in :func:`select`.
        reading: the meaning of the output.

    Raises:
        TargetError: as :func:`select`.
    """
    target = resolved(target, reading)
    if isinstance(target, (Pixels, Span, tuple)) or (callable(target) and not isinstance(target, (Tensor, OfClass))):
        return None
    form: OfClass = target if isinstance(target, OfClass) else Logit(target)  # type: ignore[arg-type]
    batch, length = shape
    if form.position is not None:
        check_range(form.position, batch, length, "position")
    return form, _positions(form.position, shape, inputs)


def _positions(position: int | Tensor | None, shape: tuple[int, int], inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions (B,) in a sequence: ``position``, or without it the last one that is not padding."""
    batch, length = shape
    if position is None:
        return last_positions(length, batch, inputs)
    return (torch.as_tensor(position) % length).expand(batch)


def largest(logits: Tensor) -> Tensor:
    """(B, n) -> (B,), the largest entry of each sample."""
    return logits[torch.arange(logits.shape[0], device=logits.device), logits.detach().argmax(-1)]


def by_class(
    logits: Tensor, inputs: Mapping[str, Tensor], reading: Reading, position: int | Tensor | None = None
) -> Tensor:
    """(B, classes) logits; those of a sequence at a position, or at the last position that is not padding.

    Raises:
        TargetError: for an output in which a class has, or may have, several values, and for a position in an output
            without positions.
    """
    kind = reading.kind(logits)
    if kind == "single":
        raise TargetError(f"the output has one value per sample (shape {tuple(logits.shape)}): nothing to choose from")
    if position is not None and kind != "sequence":
        raise TargetError(f"the output of shape {tuple(logits.shape)} has no positions to choose from: leave it out")
    if kind == "sequence":
        positions = _positions(position, (logits.shape[0], logits.shape[1]), inputs)
        return at_positions(logits, positions.to(logits.device)[:, None]).squeeze(1)
    if kind != "classes":
        raise TargetError(_many_values(logits, reading))
    return logits


def of_class(form: type[OfClass], logits: Tensor, chosen: Tensor, foil: Tensor | None = None) -> Tensor:
    """(B,) values of one class per sample.

    Args:
        form: type of target.
        logits: (B, classes).
        chosen: (B,) classes.
        foil: (B,) classes to compare with, for a contrast; None for all others.
    """
    rows = torch.arange(logits.shape[0], device=logits.device)
    if form is Logit:
        return logits[rows, chosen]
    if form is Contrast and foil is not None:
        return logits[rows, chosen] - logits[rows, foil]
    wide = logits.float() if logits.element_size() < 4 else logits
    if form is Contrast:
        value = wide[rows, chosen] - weighed_others(wide, chosen)
    else:
        value = (wide.log_softmax(-1) if form is LogProb else wide.softmax(-1))[rows, chosen]
    return value.to(logits.dtype)


def weighed_others(logits: Tensor, chosen: Tensor) -> Tensor:
    """(..., classes) logits -> sum of all but the chosen logit, weighted by their softmax, held constant."""
    shares = logits.detach().scatter(-1, chosen[..., None], -float("inf")).softmax(-1)
    return torch.where(shares == 0, 0.0, logits * shares).sum(-1)  # (0 times a logit of -inf is 0 here)


def of_span(
    logits: Tensor, start: int | Tensor, end: int | Tensor | None, inputs: Mapping[str, Tensor], reading: Reading
) -> Tensor:
    """(B,) sums over tokens from ``start`` to ``end`` of each token's contrast with all others; padding counts 0."""
    ids, length = tokens_of(logits.shape[:2], inputs, reading), logits.shape[1]
    place = torch.arange(1, length, device=logits.device)
    counted = place >= _from_front(start, length, logits.device)
    if end is not None:
        counted = counted & (place < _from_front(end, length, logits.device))
    mask = padding_mask(length, logits.shape[0], inputs)
    if mask is not None:
        visible = shown(mask).to(logits.device)
        counted = counted & visible[:, 1:] & visible[:, :-1]
    wide = logits[:, :-1].float() if logits.element_size() < 4 else logits[:, :-1]
    following = ids[:, 1:].to(logits.device).long()
    contrasts = wide.gather(-1, following[..., None]).squeeze(-1) - weighed_others(wide, following)
    return torch.where(counted, contrasts, 0.0).sum(-1).to(logits.dtype)


def _from_front(index: int | Tensor, length: int, device: torch.device) -> Tensor:
    """An index, or one per sample, as a (B or 1, 1) tensor of non-negative indices."""
    index = torch.as_tensor(index, device=device)
    return torch.where(index < 0, index + length, index).reshape(-1, 1)


def tokens_of(shape: Sequence[int], inputs: Mapping[str, Tensor], reading: Reading) -> Tensor:
    """The (B, S) token ids that a sequence of logits of this batch and length predicts.

    Raises:
        TargetError: if the inputs have none.
    """
    for name in reading.tokens:
        ids = inputs.get(name)
        if ids is not None and ids.shape[1] == shape[1] and ids.shape[0] == shape[0]:
            return ids
    raise TargetError(
        "lrp_fx.Span takes a sequence of logits over the vocabulary of its token ids, as long as they are; this output "
        f"begins with {tuple(shape)}. Let the model read input ids (of a decoder: the decoder's own) and return all "
        "its logits, or choose with a callable output -> (B,)"
    )


def check_span(target: Span, shape: Sequence[int], inputs: Mapping[str, Tensor], reading: Reading) -> None:
    """Check that the output is a sequence of logits over its tokens, and that a span lies in the text.

    Raises:
        TargetError: if not.
    """
    if len(shape) < 2:
        raise TargetError("lrp_fx.Span takes a sequence of logits: this output has none")
    batch, length = shape
    tokens_of(shape, inputs, reading)
    check_bounds(target, batch, length)


def _many_values(logits: Tensor, reading: Reading) -> str:
    """Error message for a class, or None, as the target of an output with several values per class."""
    shape = tuple(logits.shape)
    indices = [f"i{axis}" for axis in range(1, len(shape))]
    if reading.kind(logits) == "unknown":
        reason, pixels = "its graph does not tell which dimension counts classes", "Pixels(class, axis=...)"
    else:
        axis = int(reading.axis or 0)
        reason = f"dimension {axis} counts classes (0 to {shape[axis] - 1}), and each has many values"
        indices[axis - 1], pixels = "class", "Pixels(class)"
    return (
        f"a class says too little of an output of shape {shape}: {reason}. Choose target=({', '.join(indices)}) for "
        f"one entry, target=lrp_fx.{pixels} for the sum over the pixels or steps where the class wins, or a callable "
        "output -> (B,)"
    )


def at_pixels(
    logits: Tensor, target: Pixels, inputs: Mapping[str, Tensor], reading: Reading, chosen: Tensor | None = None
) -> Tensor:
    """(B,) logits of a class, summed over the pixels or steps where it has the largest logit.

    Args:
        logits: (B, ...) with a class axis.
        target: the target.
        inputs: inputs, with padding masks among them.
        reading: where the output has its logits.
        chosen: (B,) classes in place of the target's, for a graph with target inputs.

    Raises:
        TargetError: without a known class axis, for a class out of range, and for a sequence with a padding mask.
    """
    axis = target.axis if target.axis is not None else reading.axis
    if axis is None and reading.kind(logits) == "sequence":
        axis = 2
    rank = logits.dim()
    if rank < 3 or axis is None or axis % rank == 0:
        raise TargetError(
            f"Pixels sums over the pixels or steps of an output with a class dimension; the output of shape "
            f"{tuple(logits.shape)} has none, or its graph does not tell which: give Pixels(class, axis=...)"
        )
    if any(m.shape[1] == logits.shape[1] for m in padding_masks(inputs).values()) and axis % rank == 2 and rank == 3:
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
    """``chosen``, after a check that the class of :class:`Pixels` has the largest logit somewhere in the batch.

    Raises:
        TargetError: if it has not.
    """
    if isinstance(target, Pixels) and not chosen.is_meta and not bool(chosen.any()):
        index = target.chosen.tolist() if isinstance(target.chosen, Tensor) else target.chosen
        raise TargetError(
            f"class {index} wins at no pixel or step of any sample: there is nothing to explain. Choose another class, "
            "or a callable output -> (B,) that sums its logits anyhow"
        )
    return chosen


def at_positions(logits: Tensor, positions: Tensor) -> Tensor:
    """(B, T, ...) at (B, n) positions -> (B, n, ...)."""
    return logits[torch.arange(logits.shape[0], device=logits.device)[:, None], positions]


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
