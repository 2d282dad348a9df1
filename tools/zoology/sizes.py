"""Inputs of other sizes, made from those of a case: one sample, longer texts and sounds, larger images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

TOKENS = (70, 130)  #: lengths beyond the models' chunks, windows and blocks of 64 and 128
TEXTS = ("decoder_input_ids", "input_ids")  #: inputs that are texts; other inputs of the same length belong to them


@dataclass(frozen=True)
class Sized:
    """Inputs of another size.

    Attributes:
        label: the change, for the report.
    """

    label: str
    args: Any
    kwargs: dict[str, Any]


def one_sample(args: Any, kwargs: dict[str, Any]) -> Sized | None:
    """The first sample of two; rows that belong to samples together (packed patches) are halved. None for one sample."""
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
    if not leaves or any(t.shape[0] % 2 for t in leaves):
        return None

    def half(leaf: Any) -> Any:
        return leaf[: len(leaf) // 2] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return Sized("1 sample", *pytree.tree_map(half, (args, kwargs)))


def longer(args: Any, kwargs: dict[str, Any], tokens: int) -> Iterator[Sized]:
    """Candidates, the best first; for a model without text, inputs larger by a half, and twice as large."""
    texts = [
        t for t in _leaves(args, kwargs) if not t.is_floating_point() and t.dim() == 2 and 4 <= t.shape[1] < tokens
    ]
    named = {n: kwargs[n] for n in TEXTS if isinstance(kwargs.get(n), Tensor) and kwargs[n].dim() == 2}
    if lengths := {t.shape[1] for t in named.values()} or {t.shape[1] for t in texts}:
        if max(lengths) < tokens:
            yield Sized(f"{tokens} tokens", *_resized(args, kwargs, lambda t: _stretched(t, lengths, tokens)))
            first = named.get("input_ids")
            if len(lengths) > 1 and first is not None:  # the answer's length may be bounded by itself
                only = {first.shape[1]}
                yield Sized(f"{tokens} tokens", *_resized(args, kwargs, lambda t: _stretched(t, only, tokens)))
    elif tokens == TOKENS[0]:
        for factor, label in ((1.5, "larger by half"), (2, "twice as large")):
            yield Sized(label, *_resized(args, kwargs, lambda t, f=factor: _enlarged(t, f)))
    elif any(t.dim() == 4 for t in _leaves(args, kwargs)):
        yield Sized("wider by half", *_resized(args, kwargs, lambda t: _wider(t)))


def _leaves(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    return [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]


def _resized(args: Any, kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))


def _stretched(leaf: Tensor, lengths: set[int], tokens: int) -> Tensor:
    """More words before the last one (which may be an end of sentence); placeholders of images stay where they are."""
    if leaf.dim() < 2 or leaf.shape[1] not in lengths or leaf.dim() == 4:
        return leaf
    words = leaf[:, max(leaf.shape[1] - 7, 1) : -1]
    missing = tokens - leaf.shape[1]
    more = words.repeat(1, missing // words.shape[1] + 1, *[1] * (leaf.dim() - 2))[:, :missing]
    if leaf.dim() == 2 and not leaf.is_floating_point() and bool((leaf.diff(dim=1) == 1).all()):  # positions count on
        return leaf[:, :1] + torch.arange(tokens)
    if leaf.dim() == 2 and not leaf.is_floating_point() and bool((more > 1).any()):  # other words, in another order
        more = more.flip(1)
    return torch.cat([leaf[:, :-1], more, leaf[:, -1:]], dim=1)


def _enlarged(leaf: Tensor, factor: float) -> Tensor:
    """Images in height and width, sounds and spectrograms in time."""
    if not leaf.is_floating_point() or leaf.dim() < 2:
        return leaf
    for dim in (leaf.dim() - 2, leaf.dim() - 1) if leaf.dim() >= 4 else (leaf.dim() - 1,):
        size = int(leaf.shape[dim] * factor)
        more = leaf.flip(dim).narrow(dim, 0, size - leaf.shape[dim])
        leaf = torch.cat([leaf, more], dim)
    return leaf


def _wider(leaf: Tensor) -> Tensor:
    if not leaf.is_floating_point() or leaf.dim() != 4:
        return leaf
    return torch.cat([leaf, leaf.flip(-1)[..., : leaf.shape[-1] // 2]], -1)
