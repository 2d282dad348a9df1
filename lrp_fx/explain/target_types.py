"""What can be explained: the forms of a target, their names, and every target in one spelling."""

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
    """The logit of a class: what a class alone means, too.

    Attributes:
        chosen: class index, or a (B,) tensor of them; None for each sample's largest logit.
        position: of a sequence of logits, which of them, or a (B,) tensor; None for the last that is not padding.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """Why this class rather than that one: a difference of logits as the target.

    Attributes:
        chosen: class index, or a (B,) tensor of them; None for each sample's largest logit.
        foil: the class it is set against (index or (B,) tensor). None for all others, each weighed by its share of
            their softmax: z_c - sum_k p_k z_k / (1 - p_c), p held constant (softmax-contrastive, after CLRP, Gu et al.
            2018). Relevance sums to that difference, which means something where all logits are negative, too.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    foil: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class LogProb:
    """The log-probability of a class, log softmax(z)_c, whatever the rules do with softmax inside of the model.

    Its derivative in the logits is (1 - p_c) times that of ``Contrast(chosen)``, and so is every relevance: the maps
    are alike. Only the contrast is a sum of logits, though, which relevance adds up to: here the ledger's entry
    ``target`` holds the difference. Where p_c is nearly 1 nothing is left of a log-probability; the contrast keeps its
    size.

    Attributes:
        chosen: as in :class:`Logit`.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Probability:
    """The probability of a class, softmax(z)_c: as :class:`LogProb`, with p_c (1 - p_c) times the contrast's relevance.

    Attributes:
        chosen: as in :class:`Logit`.
        position: as in :class:`Logit`.
    """

    chosen: int | Tensor | None = None
    position: int | Tensor | None = None


@dataclass(frozen=True)
class Span:
    """Why these tokens: the sum over a span of a text of every token's contrast with all others, in one sweep.

    Of a language model that is given the whole text: the logits at a position say the token behind it. Padding inside
    of the span counts nothing.

    Attributes:
        start: index of the span's first token (or a (B,) tensor of them); at least 1, as nothing says the first token.
        end: index behind its last one; None for the end of the text.
    """

    start: int | Tensor
    end: int | Tensor | None = None


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


#: what is explained of one class
OfClass = Logit | Contrast | LogProb | Probability
Target = int | Tensor | Sequence[int] | tuple[Any, ...] | Callable[[Any], Tensor] | str | OfClass | Span | Pixels | None

#: targets by name, each of the largest logit
NAMED: Mapping[str, OfClass] = MappingProxyType(
    {"logit": Logit(), "contrast": Contrast(), "log_prob": LogProb(), "probability": Probability()}
)
#: form -> its fields that are an index, or one per sample
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
    """Of a form of target, the fields that hold an index and are given."""
    fields = {name: getattr(target, name) for name in INDICES.get(type(target), ())}
    return {name: value for name, value in fields.items() if value is not None}


def normal(target: Target) -> Target:
    """A target in one spelling: names become forms, integers of any library ``int``, sequences of them (B,) tensors.

    Raises:
        TargetError: for what is no target: another string, a boolean, a fraction, an empty sequence.
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
    """A target in words, for what is written about an explanation; nothing for the model's own answer."""
    if target is None:
        return ""
    if isinstance(target, Tensor):
        return str(target.tolist())
    if type(target) in INDICES:
        parts = ", ".join(f"{name}={spoken(value)}" for name, value in vars(target).items() if value is not None)
        return f"{type(target).__name__}({parts})"
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


def check_range(target: Any, batch: int, classes: int | None, what: str = "target") -> Tensor:
    """A class, or one per sample, as a tensor; ``classes`` is None where their number is not known.

    Raises:
        TargetError: for a wrong number of them, or one out of range.
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
    """Look whether a span lies in a text of ``length`` tokens.

    Raises:
        TargetError: where it does not.
    """
    start = check_range(target.start, batch, None)
    end = check_range(length if target.end is None else target.end, batch, None)
    start, end = (torch.where(n < 0, n + length, n).cpu() for n in (start, end))
    if bool(((start < 1) | (start >= end) | (end > length)).any()):
        raise TargetError(
            f"the span from {start.tolist()} to {end.tolist()} does not lie in a text of {length} tokens: choose "
            "1 <= start < end <= length (nothing says the first token)"
        )
