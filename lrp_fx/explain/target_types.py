"""Targets: their types, their names, and one normal form for every spelling."""

from __future__ import annotations

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import TargetError


@dataclass(frozen=True)
class Logit:
    """The logit of a class. A class index alone means the same.

    Attributes:
        chosen: class index, or a (B,) tensor of them; None for each sample's largest logit.
        position: index into a sequence of logits, or a (B,) tensor; None for the last position that is not padding.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """Why this class rather than that one: a difference of logits.

    Attributes:
        chosen: class index, or a (B,) tensor of them; None for each sample's largest logit.
        foil: the class to compare with (index or (B,) tensor). None for all others, weighted by their softmax:
            z_c - sum_k p_k z_k / (1 - p_c), with constant p (softmax-contrastive, after CLRP, Gu et al. 2018).
            Relevance sums to that difference, which is meaningful even if all logits are negative.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    foil: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class LogProb:
    """The log-probability of a class, log softmax(z)_c. The rules for softmax inside the model do not apply to it.

    Its gradient is (1 - p_c) times that of ``Contrast(chosen)``, and so is relevance: the maps differ by a factor. Only
    the contrast is a weighted sum of logits, to which relevance adds up; here the ledger's entry ``target`` is the
    difference. For p_c near 1 a log-probability vanishes; the contrast does not.

    Attributes:
        chosen: as in :class:`Logit`.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Probability:
    """The probability of a class, softmax(z)_c. Relevance is p_c (1 - p_c) times the contrast's; see :class:`LogProb`.

    Attributes:
        chosen: as in :class:`Logit`.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Span:
    """Why these tokens: the sum over a span of a text of every token's contrast with all others, in one sweep.

    For a language model with the whole text as its input: the logits at a position predict the next token. Padding
    inside the span counts 0.

    Attributes:
        start: index of the span's first token (or a (B,) tensor of them); at least 1, as no logits predict the first
            token of a text.
        end: index behind its last token; None for the end of the text.
    """

    start: int | Tensor
    end: int | Tensor | None = None


@dataclass(frozen=True)
class Pixels:
    """The logits of one class, summed over the pixels (or steps) where this class has the largest logit.

    For outputs (B, classes, H, W), (B, classes, T), (B, H, W, classes). A single channel wins where it is positive. A
    sample without such a pixel has a target of 0; a batch without one raises :class:`lrp_fx.errors.TargetError`.

    Attributes:
        chosen: class index, or a (B,) tensor of them.
        axis: the class dimension of the output; None for the one found in the graph.
    """

    chosen: int | Tensor
    axis: int | None = None


#: targets of one class
OfClass = Logit | Contrast | LogProb | Probability
Target = int | Tensor | Sequence[int] | tuple[Any, ...] | Callable[[Any], Tensor] | str | OfClass | Span | Pixels | None

#: targets by name, each for the class of the largest logit
NAMED: Mapping[str, OfClass] = MappingProxyType(
    {"logit": Logit(), "contrast": Contrast(), "log_prob": LogProb(), "probability": Probability()}
)
#: type of target -> its fields that are an index, or one per sample
INDICES: Mapping[type, tuple[str, ...]] = MappingProxyType({
    Logit: ("chosen", "position"), Contrast: ("chosen", "foil", "position"), LogProb: ("chosen", "position"),
    Probability: ("chosen", "position"), Span: ("start", "end"), Pixels: ("chosen",),
})  # fmt: skip
_NEEDED = {Span: ("start", "takes the first token of the span"), Pixels: ("chosen", "takes a class, or one per sample")}
_CHOICES = (
    f"give a class, a (B,) tensor of classes, a tuple of indices, one of {', '.join(map(repr, NAMED))}, an lrp_fx."
    "Contrast, Logit, LogProb, Probability, Span or Pixels, or a callable output -> (B,)"
)


def indices_of(target: Target) -> dict[str, int | Tensor]:
    """The index fields of a target that are not None."""
    fields = {name: getattr(target, name) for name in INDICES.get(type(target), ())}
    return {name: value for name, value in fields.items() if value is not None}


def normal(target: Target) -> Target:
    """The normal form of a target: names become objects, integers of any library ``int``, sequences (B,) tensors.

    Raises:
        TargetError: for any other object: another string, a boolean, a fraction, an empty sequence.
    """
    if isinstance(target, str):
        return _by_name(target)
    if isinstance(target, type) and target in INDICES:
        raise TargetError(f"target {target.__name__} is a class: give an instance of it, lrp_fx.{target.__name__}(...)")
    if type(target) in INDICES:
        form: Any = target
        form = replace(form, **{name: _index(getattr(form, name)) for name in INDICES[type(form)]})
        if type(form) in _NEEDED and getattr(form, _NEEDED[type(form)][0]) is None:
            raise TargetError(f"lrp_fx.{type(form).__name__} {_NEEDED[type(form)][1]}")
        return form
    if isinstance(target, tuple):
        if not target:
            raise TargetError("target () has no index: give one for each dimension of the output but the batch")
        return tuple(_entry(part) for part in target)
    if callable(target) and not isinstance(target, Tensor):
        return target
    return _index(target)


def spoken(target: Target) -> str:
    """A target in words; "" for None."""
    if target is None:
        return ""
    if isinstance(target, Tensor):
        return str(target.tolist())
    if type(target) in INDICES:
        fields = ", ".join(f"{name}={spoken(value)}" for name, value in vars(target).items() if value is not None)
        return f"{type(target).__name__}({fields})"
    if isinstance(target, tuple):
        return f"({', '.join(spoken(part) for part in target)})"
    return getattr(target, "__qualname__", None) or str(target)


def _by_name(name: str) -> OfClass:
    if name in NAMED:
        return NAMED[name]
    near = difflib.get_close_matches(name, NAMED, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise TargetError(f"there is no target {name!r}: {meant}{_CHOICES}")


def normal_targets(targets: Sequence[Target]) -> list[Target]:
    """Several targets, each in its normal form.

    Raises:
        TargetError: for an empty list, for anything but a sequence of targets, and as :func:`normal`.
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


def check_range(target: Any, batch: int, classes: int | None, what: str = "target") -> Tensor:
    """A class, or one per sample, as a tensor; ``classes`` is None where their number is unknown.

    Raises:
        TargetError: for a wrong number of classes, or one out of range.
    """
    index = torch.as_tensor(target)
    if index.dim() == 1 and index.shape[0] != batch:
        raise TargetError(f"{index.shape[0]} targets for a batch of {batch}: give one per sample")
    if classes is not None and bool(((index >= classes) | (index < -classes)).any()):
        counted = "classes" if what == "target" else "positions"
        raise TargetError(
            f"{what} {index.tolist()} is out of range: the output has {classes} {counted} (0 to {classes - 1})"
        )
    return index


def check_bounds(target: Span, batch: int, length: int) -> None:
    """Check that a span lies in a text of ``length`` tokens.

    Raises:
        TargetError: if it does not.
    """
    start = check_range(target.start, batch, None)
    end = check_range(length if target.end is None else target.end, batch, None)
    start, end = (torch.where(n < 0, n + length, n).cpu() for n in (start, end))
    if bool(((start < 1) | (start >= end) | (end > length)).any()):
        raise TargetError(
            f"the span from {start.tolist()} to {end.tolist()} does not lie in a text of {length} tokens: choose "
            "1 <= start < end <= length (no logits predict the first token)"
        )
