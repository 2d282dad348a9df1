"""The sweep: cotangents at the tap points of one forward pass, and relevance as value times cotangent.

Every explanation uses it: eager, with checkpointed blocks, for many targets, traced into a joint graph, in pipeline
stages, cut at latents, and for the accounts. A tap point is a tensor where relevance is collected: a source (an input,
an embedding table, a counted parameter) or a latent (a tensor inside the model).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.rules.functions import relevance_of

UNREACHED = (
    "the target does not depend on any input that can carry relevance under these rules. If it depends on values that "
    'the model detaches, convert(..., detach="see-through") lets relevance follow them; if it lies behind a softmax '
    "that the rules stop, explain the logits"
)


@dataclass(frozen=True)
class TapPoints:
    """Tensors of one forward pass at which relevance is collected.

    Attributes:
        sources: leaves of autograd: the plan's sources in order, or tensors behind them (``passes.collect_early``).
        latents: path -> a tensor of the forward pass, without a gradient where no relevance passes.
        feeds_zeros: whether zeros can have relevance (:func:`lrp_fx.rules.functions.relevance_of`).
    """

    sources: Sequence[Tensor]
    latents: Mapping[str, Tensor]
    feeds_zeros: bool = False

    @classmethod
    def of(
        cls, sources: Sequence[Tensor], paths: Iterable[str], latents: Sequence[Tensor], feeds_zeros: bool
    ) -> TapPoints:
        """The tap points that a tapped graph returned, latents under their paths."""
        return cls(sources, dict(zip(paths, latents, strict=True)), feeds_zeros)

    @property
    def all(self) -> list[Tensor]:
        """Sources, then latents."""
        return [*self.sources, *self.latents.values()]

    def relevance(self, cotangents: Iterable[Tensor | None]) -> Relevance:
        """Value times cotangent at every tap point; ``cotangents`` are in the order of :attr:`all`."""
        arriving = iter(cotangents)  # one at a time, so that a generator can free each after its use
        sources = [relevance_of(value, next(arriving), self.feeds_zeros) for value in self.sources]
        return Relevance(sources, {path: relevance_of(z, next(arriving)) for path, z in self.latents.items()})


@dataclass(frozen=True)
class Relevance:
    """Relevance at tap points, elementwise; for T targets at once, with a first dimension T.

    Attributes:
        sources: in the order of the tap points.
        latents: by path.
    """

    sources: list[Tensor]
    latents: dict[str, Tensor]


def sweep(
    points: TapPoints,
    explained: Tensor,
    *,
    seed: Tensor | None = None,
    masks: Mapping[str, Tensor] | None = None,
    again: bool = False,
) -> Relevance:
    """Relevance of the sum of ``explained`` at every tap point.

    Args:
        points: tap points of the forward pass that computed ``explained``.
        explained: (B,) explained values.
        seed: cotangent of ``explained``; None for ones.
        masks: path of a latent -> factor of its cotangent (:mod:`lrp_fx.explain.conditions`).
        again: keep saved tensors for another sweep from the same forward pass.

    Raises:
        TargetError: when ``explained`` depends on no tap point.
    """
    check_reached(explained)
    with ExitStack() as hooks:
        for path, mask in (masks or {}).items():
            if points.latents[path].requires_grad:
                hooks.callback(points.latents[path].register_hook(lambda g, mask=mask: g * mask).remove)
        arrived = cotangents(explained, points.all, seed, again)
    return points.relevance(_drained(arrived))


def sweep_each(points: TapPoints, explained: Tensor, seeds: Tensor, chunk: int | None = None) -> Relevance:
    """Relevance for T seeds from one forward pass, their backward sweeps batched.

    Args:
        points: as in :func:`sweep`.
        explained: the explained values, of any shape.
        seeds: (T, *explained.shape) cotangents of ``explained``.
        chunk: number of sweeps in one batch; memory grows with it. None: all.

    Raises:
        TargetError: when ``explained`` depends on no tap point.
    """
    check_reached(explained)
    tensors = [t for t in points.all if t.requires_grad]

    def back(seed: Tensor) -> list[Tensor]:
        pairs = zip(tensors, cotangents(explained, tensors, seed, again=True), strict=True)
        return [torch.zeros_like(t) if g is None else g for t, g in pairs]

    with warnings.catch_warnings():  # kernels without a batching rule run target by target
        warnings.filterwarnings("ignore", message="There is a performance drop")
        batched = iter(torch.func.vmap(back, chunk_size=chunk)(seeds))
    count = seeds.shape[0]
    return points.relevance([next(batched) if t.requires_grad else t.new_zeros((count, *t.shape)) for t in points.all])


def cotangents(
    explained: Tensor, tensors: Sequence[Tensor], seed: Tensor | None = None, again: bool = False
) -> list[Tensor | None]:
    """The cotangent of each tensor; None if ``explained`` does not depend on it.

    Args:
        explained: the tensor to differentiate.
        tensors: tensors that it may depend on.
        seed: cotangent of ``explained``; None for ones.
        again: keep saved tensors for another backward pass.
    """
    live = [t for t in tensors if t.requires_grad]
    if not live or not explained.requires_grad:
        return [None] * len(tensors)
    start = explained.sum() if seed is None else explained
    grads = iter(torch.autograd.grad(start, live, seed, allow_unused=True, retain_graph=again))
    return [next(grads) if t.requires_grad else None for t in tensors]


def _drained(tensors: list[Tensor | None]) -> Iterator[Tensor | None]:
    """The entries of a list, removed one by one, so that each can be freed after its use."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


def check_reached(explained: Tensor) -> None:
    """Check that explained values depend on a tensor that carries relevance.

    Raises:
        TargetError: if they do not.
    """
    if not explained.requires_grad:
        raise TargetError(UNREACHED)
