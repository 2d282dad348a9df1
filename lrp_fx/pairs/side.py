"""One of the two inputs: a forward pass, and relevance of its features for weighted sums of embedding coordinates."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis import Source
from lrp_fx.converted import RuleSource
from lrp_fx.explain import Sweeper, usable
from lrp_fx.explain.sweep import TapPoints, sweep_each
from lrp_fx.lowering import at_once, check_finite
from lrp_fx.module import ExplainableModule
from lrp_fx.pairs.embedding import Output, read_embedding
from lrp_fx.pairs.features import Features, Grouping


@dataclass(frozen=True)
class Side:
    """A forward pass for many sweeps.

    Attributes:
        sweeper: the tapped graph.
        leaves: its flat inputs.
        tensors: inputs by name.
        points: its tap points.
        embedding: (B, D), with its autograd graph.
        features: the features of the input.
        chunk: number of sweeps in one batch.
    """

    sweeper: Sweeper
    leaves: tuple[Any, ...] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    points: TapPoints = field(repr=False)
    embedding: Tensor
    features: Features
    chunk: int

    @classmethod
    def forward(
        cls,
        xmodel: ExplainableModule,
        inputs: Any,
        *,
        output: Output,
        input: str | None,
        grouping: Grouping,
        rules: RuleSource | None,
        chunk: int | None,
        check: str | bool | None,
    ) -> Side:
        """Run the model on one side.

        Raises:
            TargetError: if the output has no embedding.
            InputError: for features that do not fit; as ``explain``.
        """
        args, kwargs = arguments(inputs)
        specialization, call = xmodel.specialization(args, kwargs)
        tensors = call.tensors

        def total(result: Any) -> Tensor:
            return read_embedding(result, tensors, output).sum(-1)

        when = xmodel.captures.options.when(check)
        sweeper = specialization.batched_sweeper(xmodel.rule_set(rules), call, total, when)
        sweeper.inputs.check()
        names = list(dict.fromkeys(sweeper.inputs.name(n) for s in sweeper.inputs.facts.sources for n in _owners(s)))
        features = Features.of(tensors, names, input, grouping)
        with specialization.named_failures(call), torch.inference_mode(False), torch.enable_grad():
            leaves = usable(call.leaves)
            flat, sources, latents = sweeper.swept(*leaves)
            embedding = read_embedding(sweeper.output(flat), tensors, output)
        check_finite([embedding.detach()])
        at_a_time = chunk or at_once(list(tensors.values()))
        points = sweeper.points(sources, latents)
        return cls(sweeper, leaves, tensors, points, embedding, features, at_a_time)

    @property
    def width(self) -> int:
        """Number of embedding coordinates, D."""
        return self.embedding.shape[1]

    @property
    def precision(self) -> torch.dtype:
        """Precision of products: single precision at least."""
        return torch.promote_types(self.embedding.dtype, torch.float32)

    @functools.cached_property
    def shown(self) -> Tensor:
        """(B, I) features that are not padding."""
        return self.features.shown(self.tensors)

    @property
    def explained(self) -> Tensor:
        """The input with the features, detached."""
        return self.tensors[self.features.input].detach()

    @property
    def has_entries(self) -> bool:
        """Whether the input is worth keeping: features are its ids, or it is floating (an image, vectors)."""
        return self.explained.is_floating_point() or self.explained.shape == self.shown.shape

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches of an image; None for other features."""
        return self.features.grid(self.tensors[self.features.input].shape)

    @property
    def cost(self) -> int:
        """Relative cost of one sweep: the number of entries of the input."""
        return self.tensors[self.features.input].numel()

    def coordinates(self, first: int, end: int) -> Tensor:
        """(end - first, B, I + 1) factors of the embedding coordinates from ``first`` to ``end``."""
        picks = torch.eye(self.width, dtype=self.embedding.dtype, device=self.embedding.device)[first:end]
        return self.factors(picks[:, None].expand(-1, len(self.embedding), -1))

    @torch.inference_mode(False)
    def factors(self, seeds: Tensor) -> Tensor:
        """Relevance of the features for weighted sums of coordinates, with the rest as the last entry.

        Args:
            seeds: (T, B, D) weights.

        Returns:
            (T, B, I + 1); sums over the last dimension are the weighted sums.

        Raises:
            TargetError: if the embedding depends on no input.
            NumericalError: if a relevance is not finite.
        """
        with torch.enable_grad():
            arrived = sweep_each(self.points, self.embedding, seeds.to(self.embedding.dtype))
        check_finite(arrived.sources)
        inputs = self.sweeper.inputs
        values = inputs.values(self.leaves)
        grouped = []
        for index in range(len(seeds)):
            of_inputs = inputs.per_input(inputs.facts.sources, [r[index] for r in arrived.sources], values)
            grouped.append(self.features.group(of_inputs[self.features.input]))
        of_features = torch.stack(grouped).to(self.precision)
        sums = (seeds.to(self.precision) * self.embedding.detach().to(self.precision)).sum(-1)
        return torch.cat([of_features, (sums - of_features.sum(-1))[..., None]], -1)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of one side as (positional, keyword) arguments: a mapping by keyword, anything else by position."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _owners(source: Source) -> list[Node]:
    """The inputs of a source."""
    return [owner for owner, _ in source.picks] if source.picks else [source.input]
