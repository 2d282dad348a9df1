"""Methods that remove features and compare outputs: leave-one-out and KernelSHAP, from Captum.

Both use the model as a function of present features, (B, F) in {0, 1}. So they need neither embeddings nor feature
masks, and remove features exactly as the perturbation curves do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.evaluate.methods import Explainer, Method
from lrp_fx.evaluate.perturbation import ROWS, flipped_scores
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.extras import require


def leave_one_out() -> Method:
    """Drop of the explained value when one feature is removed (occlusion, Zeiler and Fergus, arXiv:1311.2901)."""

    def prepare(task: Task) -> Explainer:
        method: Any = require("captum.attr", "evaluate")

        def explain(batch: Batch) -> Tensor:
            size, features = batch.eligible.shape
            present = torch.ones(size, features)
            ablation = method.FeatureAblation(_present(task, batch))
            return ablation.attribute(present, baselines=0.0, perturbations_per_eval=max(ROWS // size, 1)).double()

        return explain

    return Method("leave_one_out", prepare)


def kernel_shap(evaluations: int = 128, seed: int = 0, limit: int | None = None) -> Method:
    """Shapley values of the eligible features, estimated from ``evaluations`` coalitions per sample by the weighted
    regression of Lundberg and Lee (arXiv:1705.07874)."""

    def prepare(task: Task) -> Explainer:
        method: Any = require("captum.attr", "evaluate")

        def explain(batch: Batch) -> Tensor:
            attributed = torch.zeros(batch.eligible.shape)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for row in range(len(batch)):
                    eligible = batch.eligible[row]
                    count = int(eligible.sum())
                    if count < 2:
                        raise InputError(
                            f"task {task.name!r}: KernelSHAP needs two eligible features, sample {row} has {count}"
                        )
                    shap = method.KernelShap(_present(task, batch.part(slice(row, row + 1))))
                    attributed[row, eligible] = shap.attribute(
                        torch.ones(1, count), baselines=0.0, n_samples=evaluations, perturbations_per_eval=ROWS
                    )[0]
            return attributed

        return explain

    return Method("kernel_shap", prepare, limit=limit)


def _present(task: Task, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The explained values as a function of present features.

    Captum evaluates k perturbations of each sample at once, (k B, F), ordered by perturbation, then sample. For a
    single sample, F may be the number of its eligible features.
    """

    def score(present: Tensor) -> Tensor:
        size, features = batch.eligible.shape
        absent = present < 0.5
        if absent.shape[1] < features:
            absent = absent.new_zeros(len(absent), features).masked_scatter(
                batch.eligible.expand(len(absent), -1), absent
            )
        flipped = absent.view(-1, size, features).transpose(0, 1) & batch.eligible[:, None]
        return flipped_scores(task, batch, flipped).transpose(0, 1).flatten()

    return score
