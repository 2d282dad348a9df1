"""Perturbation curves: the explained value while features are removed in the order of their relevance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.evaluate.task import Batch, Task, pick

ROWS = 512  #: perturbed samples in one forward pass


@dataclass(frozen=True)
class Curves:
    """Explained values along two orders of removing features.

    Attributes:
        most_first: (B, steps + 1) values, most relevant features first (MoRF); column 0 is the whole sample.
        least_first: the same, least relevant first (LeRF). The last columns are equal: no eligible feature is left.
    """

    most_first: Tensor
    least_first: Tensor

    @property
    def abpc(self) -> Tensor:
        """(B,) area between the curves: the mean over the steps of LeRF - MoRF, in units of the explained value.

        The measure of AttnLRP (arXiv:2402.05602, section 4.1; from Bluecher et al., arXiv:2401.06654), not normalised.
        The curves meet at both ends, so that this mean is also the trapezoidal area over the removed fraction.
        """
        return (self.least_first - self.most_first)[:, 1:].mean(1)

    @property
    def deletion(self) -> Tensor:
        """(B,) trapezoidal area under MoRF over the removed fraction; lower is better (RISE, arXiv:1806.07421, with the
        explained value in place of a probability)."""
        return _area(self.most_first)

    @property
    def insertion(self) -> Tensor:
        """(B,) trapezoidal area under the curve of inserting the most relevant features first (LeRF reversed); higher
        is better."""
        return _area(self.least_first)


def _area(curve: Tensor) -> Tensor:
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))


def ranks(relevance: Tensor, eligible: Tensor) -> Tensor:
    """(B, F) rank of every feature, most relevant first, ineligible last; ties in the order of features."""
    order = relevance.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1)


def perturbation(task: Task, batch: Batch, relevance: Tensor, steps: int = 10) -> Curves:
    """Remove eligible features in ``steps`` equal portions, most and least relevant first.

    After step s of a sample with n eligible features, round(s n / steps) of them are removed.

    Args:
        task: the task, with model and features.
        batch: samples of the task.
        relevance: (B, F).
        steps: number of portions; a sample with fewer features repeats values.

    Raises:
        InputError: for relevance of another shape, or a sample without eligible features.
    """
    if relevance.shape != batch.eligible.shape:
        raise InputError(f"relevance is {tuple(relevance.shape)}, the features are {tuple(batch.eligible.shape)}")
    count = batch.eligible.sum(1)
    if not bool(count.all()):
        raise InputError(f"task {task.name!r}: a sample has no eligible feature to remove")
    place = ranks(relevance, batch.eligible)[:, None]  # (B, 1, F)
    portions = torch.arange(steps + 1) / steps
    gone = (portions * count[:, None]).round().long()[..., None]  # (B, steps + 1, 1)
    eligible = batch.eligible[:, None]
    most = (place < gone) & eligible
    least = (place >= count[:, None, None] - gone) & eligible
    values = flipped_scores(task, batch, torch.cat([most, least[:, 1:-1]], 1))  # the ends are shared
    first, last = values[:, :1], values[:, steps : steps + 1]
    return Curves(values[:, : steps + 1], torch.cat([first, values[:, steps + 1 :], last], 1))


def flipped_scores(task: Task, batch: Batch, flipped: Tensor) -> Tensor:
    """(B, M) explained values with the features in ``flipped``, (B, M, F) bool, removed, in few large passes."""
    size, variants = flipped.shape[:2]
    samples = torch.arange(size).repeat_interleave(variants)
    flat = flipped.flatten(0, 1)
    values = []
    for rows in torch.arange(size * variants).split(ROWS):
        chosen = samples[rows]
        inputs = task.features.perturb({k: v[chosen] for k, v in batch.inputs.items()}, flat[rows])
        values.append(task.score(inputs, pick(batch.target, chosen)))
    return torch.cat(values).view(size, variants)


def leave_one_out(task: Task, batch: Batch) -> Tensor:
    """(B, F) drop of the explained value when one feature is removed; 0 for ineligible features."""
    features = batch.eligible.shape[1]
    one = torch.eye(features, dtype=torch.bool) & batch.eligible[:, None]  # (B, F, F)
    whole = one.new_zeros(len(batch), 1, features)
    values = flipped_scores(task, batch, torch.cat([whole, one], 1))
    return values[:, :1] - values[:, 1:]
