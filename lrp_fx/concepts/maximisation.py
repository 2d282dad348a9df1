"""Relevance maximisation (Achtibat et al. 2023, arXiv:2206.03208): the samples that most use a neuron.

Activation maximisation ranks samples by a neuron's response. Relevance maximisation ranks them by the neuron's
relevance in the explanation of the model's output, and so shows its use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lrp_fx.concepts.cut import cut_forward
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError, LatentError
from lrp_fx.explain import Target
from lrp_fx.explain.conditions import condition_mask
from lrp_fx.explain.target import shown
from lrp_fx.module import ExplainableModule
from lrp_fx.results.latent_rows import by_feature

By = Literal["relevance", "activation"]
Pool = Literal["sum", "max"]

#: all samples stacked, (N, ...) by input name; or batches of them, one dict each
Data = Mapping[str, Any] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Sample:
    """One sample: its index in the data, its inputs (a batch of one), and its target."""

    index: int
    inputs: dict[str, Any] = field(repr=False)
    target: Target = None


@dataclass(frozen=True)
class Hit:
    """A top sample of a neuron, with its score."""

    sample: Sample
    score: float


@dataclass(frozen=True)
class Ranking:
    """The top samples of every neuron of one latent, best first; equal scores in the order of the data.

    Attributes:
        scores: (F, top), -inf where there are fewer samples.
        samples: (F, top) indices of the samples, -1 where there are fewer.
    """

    scores: Tensor
    samples: Tensor

    @classmethod
    def empty(cls, scores: Tensor, top: int) -> Ranking:
        """A ranking without samples, for (B, F) scores."""
        shape = (scores.shape[1], top)
        return cls(scores.new_full(shape, -torch.inf), torch.full(shape, -1, device=scores.device))

    def merged(self, scores: Tensor, first: int) -> Ranking:
        """The ranking with (B, F) scores of further samples, with indices from ``first``."""
        numbers = torch.arange(first, first + scores.shape[0], device=scores.device).expand(scores.shape[1], -1)
        every = torch.cat([self.scores, scores.T], 1)
        order = every.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        return Ranking(every.gather(1, order), torch.cat([self.samples, numbers], 1).gather(1, order))


@dataclass(frozen=True)
class Collection:
    """Result of :func:`collect`.

    Attributes:
        by: score of the rankings, "relevance" or "activation".
        pool: how scores are pooled over positions.
        rankings: latent -> its ranking.
        samples: index -> sample, for all samples in any ranking.
        count: number of samples in the data.
    """

    by: By
    pool: Pool
    rankings: dict[str, Ranking]
    samples: dict[int, Sample] = field(repr=False)
    count: int

    def top(self, neuron: int, at: str | None = None) -> list[Hit]:
        """The top samples of a neuron, best first.

        Args:
            neuron: feature of the latent.
            at: the latent; optional if there is only one.

        Raises:
            LatentError: for a latent or a neuron that was not collected.
        """
        ranking = self.rankings[self.latent(at)]
        width = ranking.scores.shape[0]
        if not -width <= neuron < width:
            raise LatentError(f"neuron {neuron} of {self.latent(at)!r}: give one of 0 to {width - 1}")
        pairs = zip(ranking.samples[neuron].tolist(), ranking.scores[neuron].tolist(), strict=True)
        return [Hit(self.samples[n], score) for n, score in pairs if n >= 0]

    def latent(self, at: str | None = None) -> str:
        """``at``, or the only latent for None.

        Raises:
            LatentError: for a latent that was not collected, and for None among several.
        """
        if at is None and len(self.rankings) == 1:
            return next(iter(self.rankings))
        if at not in self.rankings:
            raise LatentError(f"at={at!r}: choose one of the latents that were collected, {', '.join(self.rankings)}")
        return at


@dataclass(frozen=True)
class Reference:
    """Explanation of a top sample of a neuron: relevance of every input, in the shapes of ``Attribution.relevance``."""

    hit: Hit
    relevance: dict[str, Tensor]


def collect(
    xmodel: ExplainableModule,
    data: Data,
    *,
    at: str | Iterable[str],
    by: By = "relevance",
    pool: Pool = "sum",
    top: int = 8,
    batch: int = 16,
    target: Target = None,
    rules: RuleSource | None = None,
    progress: bool = True,
) -> Collection:
    """Rank the samples of a data set for every neuron of the latents ``at``, in one pass over the data.

    Memory: one batch, (neurons x top) scores, and the samples in the current rankings.

    Args:
        xmodel: the converted model.
        data: all samples stacked by input name, or an iterable of batches. The first dimension of every tensor is the
            batch; other values are passed on unchanged.
        at: names of latents, as in ``explain``. Neurons are features: the last dimension, dimension 1 of images.
        by: "relevance" of the neuron, or its "activation".
        pool: "sum" or "max" over the positions of a sample, without those that a (B, S) padding mask excludes.
        top: number of samples per neuron.
        batch: batch size for stacked data.
        target: as in ``explain``; a tensor has one entry per sample of the whole data.
        rules: another rule set than the one of the conversion.
        progress: whether to show a progress bar.

    Raises:
        LatentError: for a name that matches nothing, or a latent whose first dimension is not the batch.
        InputError: for data without samples.
    """
    places = (at,) if isinstance(at, str) else tuple(at)
    rankings: dict[str, Ranking] = {}
    samples: dict[int, Sample] = {}
    count = 0
    for inputs in _batches(data, batch, progress):
        size = _size(inputs)
        aims = target[count : count + size] if isinstance(target, Tensor) and target.dim() else target
        for path, values in _values(xmodel, inputs, places, by, aims, rules).items():
            if values.shape[:1] != (size,):
                raise LatentError(f"{path!r} has the shape {tuple(values.shape)}: its rows are not the {size} samples")
            scores = _pooled(values, pool, inputs)
            rankings[path] = rankings.get(path, Ranking.empty(scores, top)).merged(scores, count)
        ranked = {n for r in rankings.values() for n in r.samples.unique().tolist()}
        new = {count + i: _sample(inputs, aims, i, count + i) for i in range(size) if count + i in ranked}
        samples = {n: s for n, s in (samples | new).items() if n in ranked}
        count += size
    if not count:
        raise InputError("there is no sample in the data")
    return Collection(by, pool, rankings, samples, count)


def reference(
    xmodel: ExplainableModule,
    collection: Collection,
    neuron: int,
    *,
    at: str | None = None,
    top: int | None = None,
    rules: RuleSource | None = None,
) -> list[Reference]:
    """Explain the top samples of a neuron, best first.

    Ranked by relevance: the explanation of the model's output conditioned on the neuron (CRP), that is, relevance that
    flows through it. Ranked by activation: relevance of the inputs for the neuron's activation, summed over positions
    or at the position of the maximum, as it was pooled.

    Args:
        xmodel: the converted model.
        collection: result of :func:`collect`.
        neuron: feature of the latent.
        at: the latent; optional if there is only one.
        top: number of samples; None for all in the collection.
        rules: another rule set than the one of the conversion.

    Raises:
        LatentError: for a latent or a neuron that was not collected.
    """
    path = collection.latent(at)
    explained = []
    for hit in collection.top(neuron, path)[:top]:
        inputs = hit.sample.inputs
        if collection.by == "relevance":
            sample = xmodel.explain(**inputs, target=hit.sample.target, condition={path: neuron}, rules=rules)
            explained.append(Reference(hit, sample.relevance))
            continue
        run = cut_forward(xmodel, (), inputs, (path,), hit.sample.target, rules)
        value = run.latent(path).before
        mask = condition_mask(path, value.detach(), neuron) * _counted(value, inputs)
        if collection.pool == "max":
            masked = torch.where(mask == 0, -torch.inf, value.detach())
            mask = torch.zeros_like(mask).flatten().index_fill(0, masked.argmax(), 1).view_as(mask)
        explained.append(Reference(hit, run.to_inputs(value, mask)))
    return explained


def _values(
    xmodel: ExplainableModule,
    inputs: dict[str, Any],
    places: tuple[str, ...],
    by: By,
    target: Target,
    rules: RuleSource | None,
) -> dict[str, Tensor]:
    if by == "relevance":
        return xmodel.explain(**inputs, at=places, target=target, rules=rules).latents
    run = cut_forward(xmodel, (), inputs, places, target, rules)
    return {cut.name: cut.after.detach() for cut in run.cuts if cut.kind == "latent"}


def _pooled(values: Tensor, pool: Pool, inputs: Mapping[str, Any]) -> Tensor:
    """(B, S, F), (B, F, H, W) or (B, F) -> (B, F)."""
    counted = _counted(values, inputs)
    rows = by_feature(torch.where(counted == 0, 0.0 if pool == "sum" else -torch.inf, values))
    return rows.sum(1) if pool == "sum" else rows.amax(1)


def _counted(values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """1 at visible positions of a sequence and 0 at padding, in the shape of ``values``; 1 without a padding mask."""
    for name, mask in inputs.items():
        if "mask" in name and isinstance(mask, Tensor) and values.dim() == 3 and mask.shape == values.shape[:2]:
            return shown(mask).to(values)[..., None].expand_as(values)
    return torch.ones_like(values)


def _batches(data: Data, batch: int, progress: bool) -> Iterator[dict[str, Any]]:
    items = _sliced(data, batch) if isinstance(data, Mapping) else data
    total = len(items) if isinstance(items, Sized) else None
    console = Console(stderr=True)
    for item in track(items, "collecting", total, console=console, transient=True, disable=not progress):
        yield dict(item)


def _sliced(data: Mapping[str, Any], batch: int) -> list[dict[str, Any]]:
    starts = range(0, _size(data), batch)
    return [{k: v[s : s + batch] if isinstance(v, Tensor) else v for k, v in data.items()} for s in starts]


def _size(inputs: Mapping[str, Any]) -> int:
    sizes = {k: v.shape[0] if v.dim() else 0 for k, v in inputs.items() if isinstance(v, Tensor)}
    if len(set(sizes.values())) != 1:
        raise InputError(f"inputs need the same number of samples in their first dimension, not {sizes}")
    return next(iter(sizes.values()))


def _sample(inputs: Mapping[str, Any], target: Target, row: int, index: int) -> Sample:
    single = {k: v[row : row + 1].clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return Sample(
        index, single, target[row : row + 1].clone() if isinstance(target, Tensor) and target.dim() else target
    )
