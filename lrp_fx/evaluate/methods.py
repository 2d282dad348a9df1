"""Explanation methods behind one interface: LRP under any rule set, and the gradient methods, from Captum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.converted import RuleSource
from lrp_fx.evaluate.embedded import Embedder, Point
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.extras import require
from lrp_fx.rules.ruleset import RuleSet

#: (B, F) relevance of a batch
Explainer = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to explain.

    Attributes:
        name: its name in tables.
        prepare: makes the explainer of a task; None if the method does not apply to the model.
        sums_to_value: whether relevance sums to the explained value (LRP), not to its difference from a reference.
        limit: largest number of samples to evaluate, for expensive methods.
    """

    name: str
    prepare: Callable[[Task], Explainer | None]
    sums_to_value: bool = False
    limit: int | None = None


def lrp(rules: RuleSource, name: str | None = None, check: str | bool | None = None) -> Method:
    """Layer-wise Relevance Propagation under a rule set; ``check`` as in :meth:`ExplainableModule.explain`."""
    ruleset = RuleSet.load(rules)

    def prepare(task: Task) -> Explainer:
        def explain(batch: Batch) -> Tensor:
            inputs: dict[str, Any] = dict(batch.inputs)
            attribution = task.converted.explain(**inputs, target=batch.target, rules=ruleset, check=check)
            return task.features.pool(attribution.relevance[task.features.input])

        return explain

    return Method(name or ruleset.name, prepare, sums_to_value=True)


def random(seed: int = 0) -> Method:
    """Standard normal numbers: a lower bound for every metric."""

    def prepare(task: Task) -> Explainer:
        generator = torch.Generator().manual_seed(seed)
        return lambda batch: torch.randn(batch.eligible.shape, generator=generator)

    return Method("random", prepare)


#: (embedder, batch, point) -> relevance at the sources, elementwise
_AtSources = Callable[[Embedder, Batch, Point], Sequence[Tensor]]


def _at_sources(name: str, attribute: _AtSources) -> Method:
    def prepare(task: Task) -> Explainer:
        embedder = Embedder(task)

        def explain(batch: Batch) -> Tensor:
            point = embedder.point(batch)
            return embedder.features(point, attribute(embedder, batch, point))

        return explain

    return Method(name, prepare)


def _captum() -> Any:
    return require("captum.attr", "evaluate")


def _leaves(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(v.clone().requires_grad_() for v in values)


def gradient() -> Method:
    """L1 norm of the gradient at a feature's embedding; for an image, the sum of absolute gradients over a patch.

    Simonyan et al., arXiv:1312.6034. It has no sign: the least relevant features are those without an effect.
    """

    def attribute(embedder: Embedder, batch: Batch, point: Point) -> Sequence[Tensor]:
        saliency = _captum().Saliency(point.embedded.explained)
        return saliency.attribute(_leaves(point.values), abs=True, additional_forward_args=point.rest)

    return _at_sources("gradient", attribute)


def input_x_gradient() -> Method:
    """Input times gradient, summed over a feature (Shrikumar et al., arXiv:1605.01713)."""

    def attribute(embedder: Embedder, batch: Batch, point: Point) -> Sequence[Tensor]:
        method = _captum().InputXGradient(point.embedded.explained)
        return method.attribute(_leaves(point.values), additional_forward_args=point.rest)

    return _at_sources("input_x_gradient", attribute)


def smoothgrad(samples: int = 16, noise: float = 0.1, seed: int = 0) -> Method:
    """L1 norm of the mean gradient over noisy inputs (Smilkov et al., arXiv:1706.03825).

    Args:
        samples: noisy copies.
        noise: standard deviation as a fraction of the range (largest minus smallest entry) of the batch at a source.
        seed: random seed of the noise, the same for every batch.
    """

    def attribute(embedder: Embedder, batch: Batch, point: Point) -> Sequence[Tensor]:
        captum = _captum()
        tunnel = captum.NoiseTunnel(captum.Saliency(point.embedded.explained))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attributed = tunnel.attribute(
                _leaves(point.values), nt_type="smoothgrad", nt_samples=samples, nt_samples_batch_size=1, abs=False,
                stdevs=tuple(noise * float(v.max() - v.min()) for v in point.values),
                additional_forward_args=point.rest,
            )  # fmt: skip
        return [g.abs() for g in attributed]

    return _at_sources("smoothgrad", attribute)


def integrated_gradients(steps: int = 20) -> Method:
    """Integrated Gradients (Sundararajan et al., arXiv:1703.01365) from the sample with every eligible feature removed
    (for tokens: the embedding of the replacement token), by Gauss-Legendre quadrature with ``steps`` points."""

    def attribute(embedder: Embedder, batch: Batch, point: Point) -> Sequence[Tensor]:
        method = _captum().IntegratedGradients(point.embedded.explained)
        return method.attribute(
            point.values, baselines=embedder.emptied(batch), n_steps=steps, internal_batch_size=len(batch),
            additional_forward_args=point.rest,
        )  # fmt: skip

    return _at_sources("integrated_gradients", attribute)
