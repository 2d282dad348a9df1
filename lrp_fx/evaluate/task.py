"""Evaluation tasks: a model with inputs, targets and features.

A *feature* is a unit that an explanation ranks and an experiment removes: a token, a patch of an image. Methods give
one number per feature, ``(B, F)``, and metrics depend on these numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_fx.convert import convert
from lrp_fx.errors import InputError
from lrp_fx.explain.reading import Reading, find_logits
from lrp_fx.explain.target import beside, select
from lrp_fx.module import ExplainableModule

#: (B,) class or token ids, or indices into the output's non-batch dimensions, (B,) each
Targets = Tensor | tuple[Tensor, ...]


class Features(Protocol):
    """The features of an input."""

    @property
    def input(self) -> str:
        """Name of the input."""

    def pool(self, relevance: Tensor) -> Tensor:
        """Relevance of that input, as in ``Attribution.relevance`` -> (B, F)."""

    def perturb(self, inputs: Mapping[str, Tensor], flipped: Tensor) -> dict[str, Tensor]:
        """The inputs with the features in ``flipped``, (B, F) bool, removed."""


@dataclass(frozen=True)
class Tokens:
    """Every position of a sequence of token ids is a feature; it is removed by another token in its place.

    Attributes:
        replacement: id of that token (a mask, padding or unknown token).
        input: name of the input.
        mask: name of its padding mask; with it, batches are cut to their longest sample, and F differs between batches.
    """

    replacement: int
    input: str = "input_ids"
    mask: str | None = None

    def length(self, inputs: Mapping[str, Tensor]) -> int:
        """Length of the longest sample: padding of all samples at the end is left out."""
        if self.mask is None:
            return inputs[self.input].shape[1]
        return int(inputs[self.mask].any(0).nonzero().max()) + 1

    def pool(self, relevance: Tensor) -> Tensor:
        """(B, S), unchanged."""
        return relevance

    def perturb(self, inputs: Mapping[str, Tensor], flipped: Tensor) -> dict[str, Tensor]:
        """Replace the tokens in ``flipped``."""
        return {**inputs, self.input: inputs[self.input].masked_fill(flipped, self.replacement)}


@dataclass(frozen=True)
class Patches:
    """Patches of a (B, C, H, W) image or a (B, H, W) spectrogram are features, row by row; they are removed by a fill.

    Attributes:
        size: side of a patch in pixels, or (height, width); it divides height and width of the image.
        fill: a value per channel, or None for the mean of each image's channel.
        input: name of the input.
    """

    size: int | tuple[int, int]
    fill: tuple[float, ...] | None = None
    input: str = "x"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def pool(self, relevance: Tensor) -> Tensor:
        """Sum over the pixels and channels of each patch."""
        height, width = self.sides
        image = relevance[:, None] if relevance.dim() == 3 else relevance.sum(1, keepdim=True)
        return F.avg_pool2d(image, self.sides).flatten(1) * (height * width)

    def perturb(self, inputs: Mapping[str, Tensor], flipped: Tensor) -> dict[str, Tensor]:
        """Fill the patches in ``flipped``."""
        value = inputs[self.input]
        image = value[:, None] if value.dim() == 3 else value
        height, width = self.sides
        mask = flipped.view(-1, 1, image.shape[2] // height, image.shape[3] // width)
        mask = mask.repeat_interleave(height, 2).repeat_interleave(width, 3)
        mean = self.fill is None
        fill = image.mean((2, 3), keepdim=True) if mean else image.new_tensor(self.fill).view(1, -1, 1, 1)
        return {**inputs, self.input: torch.where(mask, fill, image).view_as(value)}


@dataclass(frozen=True)
class Batch:
    """Some samples of a task: see :class:`Task` for the fields."""

    inputs: dict[str, Tensor]
    target: Targets
    eligible: Tensor
    annotated: Tensor | None
    blank: Tensor | None = None

    def __len__(self) -> int:
        return self.eligible.shape[0]

    def part(self, rows: slice | Tensor) -> Batch:
        """The samples ``rows``."""
        inputs = {k: v[rows] for k, v in self.inputs.items()}
        labels = (None if label is None else label[rows] for label in (self.annotated, self.blank))
        return Batch(inputs, pick(self.target, rows), self.eligible[rows], *labels)


def pick(target: Targets, rows: slice | Tensor) -> Targets:
    """The targets of the samples ``rows``."""
    return tuple(t[rows] for t in target) if isinstance(target, tuple) else target[rows]


@dataclass(frozen=True)
class Task:
    """A model with samples to explain.

    Attributes:
        name: its name in tables.
        model: the model, in evaluation mode.
        inputs: its inputs by keyword, all samples stacked, (N, ...) each.
        target: (N,) class or token ids (in a sequence of logits, at the last position that is not padding), or a tuple
            of (N,) indices into the output's further dimensions: (positions, token ids).
        features: the features, which are ranked and removed.
        eligible: (N, F) bool: features that may be removed (no start token, no padding); None for all.
        annotated: (N, F) bool: features that contain the answer.
        blank: (N, F) bool: features that contain nothing (white paper, silence).
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Tensor]
    target: Targets
    features: Features
    eligible: Tensor | None = None
    annotated: Tensor | None = None
    blank: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {k: v.shape[0] for k, v in self.inputs.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise InputError(f"task {self.name!r}: inputs need the same number of samples, not {sizes}")
        if self.features.input not in self.inputs:
            raise InputError(f"task {self.name!r} has no input {self.features.input!r}, but {', '.join(self.inputs)}")

    def __len__(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    @cached_property
    def converted(self) -> ExplainableModule:
        """The converted model, one for all methods; it is captured at its first call."""
        return convert(self.model)

    def batches(self, size: int) -> Iterator[Batch]:
        """The samples in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def batch(self, rows: slice | Tensor) -> Batch:
        """The samples ``rows``, without padding that all of them have."""
        inputs = {k: v[rows] for k, v in self.inputs.items()}
        if self.eligible is not None:
            eligible = self.eligible[rows]
        else:
            value = inputs[self.features.input]
            eligible = torch.ones_like(self.features.pool(torch.ones(value.shape)), dtype=torch.bool)
        labels = [None if label is None else label[rows] for label in (self.annotated, self.blank)]
        if isinstance(self.features, Tokens):
            whole, length = eligible.shape[1], self.features.length(inputs)
            inputs = {
                k: v[:, :length].contiguous() if v.dim() > 1 and v.shape[1] == whole else v for k, v in inputs.items()
            }
            eligible = eligible[:, :length]
            labels = [None if label is None else label[:, :length] for label in labels]
        return Batch(inputs, pick(self.target, rows), eligible, *labels)

    def part(self, rows: slice | Tensor, name: str | None = None) -> Task:
        """A task of the samples ``rows``."""
        batch = self.batch(rows)
        return replace(
            self,
            name=name or self.name,
            inputs=batch.inputs,
            target=batch.target,
            eligible=batch.eligible,
            annotated=batch.annotated,
            blank=batch.blank,
        )

    def score(self, inputs: Mapping[str, Tensor], target: Targets) -> Tensor:
        """(B,) explained values of the model on ``inputs``, without gradients."""
        with torch.no_grad():
            output = self.model(**inputs)
            reading = Reading()
            if find_logits(output).dim() > 2:  # the graph tells its class dimension
                specialization, _ = self.converted.specialization((), dict(inputs))
                reading = replace(specialization.reading, leaf=None)
            return select(output, target, beside(inputs), reading)
