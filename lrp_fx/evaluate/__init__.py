"""Evaluation: faithfulness of explanations, measured on the explained model."""

from collections.abc import Iterable

from lrp_fx.evaluate.grad_cam import grad_cam
from lrp_fx.evaluate.measure import evaluate
from lrp_fx.evaluate.methods import (
    Explainer,
    Method,
    gradient,
    input_x_gradient,
    integrated_gradients,
    lrp,
    random,
    smoothgrad,
)
from lrp_fx.evaluate.metrics import METRICS, Metric, Trial
from lrp_fx.evaluate.occlusion import kernel_shap, leave_one_out
from lrp_fx.evaluate.perturbation import Curves, perturbation
from lrp_fx.evaluate.randomisation import randomisation
from lrp_fx.evaluate.results import Results
from lrp_fx.evaluate.rollout import atman, attention_rollout, gradient_rollout
from lrp_fx.evaluate.task import Batch, Features, Patches, Task, Tokens

BASELINES = {
    m.name: m
    for m in (
        random(), gradient(), input_x_gradient(), smoothgrad(), integrated_gradients(), grad_cam(),
        attention_rollout(), gradient_rollout(), atman(), kernel_shap(), leave_one_out(),
    )
}  # fmt: skip

METHODS = {name: lrp(name) for name in ("default", "attnlrp", "cp_lrp")} | BASELINES
"""Methods by name; every rule set is a method: ``lrp("epsilon_plus")``."""


def find_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name: in ``METHODS``, or a rule set (a name or a TOML file).

    Raises:
        RuleSetError: for any other name.
    """
    return [METHODS[n] if n in METHODS else lrp(n) for n in names]


__all__ = [
    "BASELINES",
    "METHODS",
    "METRICS",
    "Batch",
    "Curves",
    "Explainer",
    "Features",
    "Method",
    "Metric",
    "Patches",
    "Results",
    "Task",
    "Tokens",
    "Trial",
    "atman",
    "attention_rollout",
    "evaluate",
    "find_methods",
    "grad_cam",
    "gradient",
    "gradient_rollout",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "leave_one_out",
    "lrp",
    "perturbation",
    "random",
    "randomisation",
    "smoothgrad",
]
