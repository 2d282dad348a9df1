"""Search a rule set for faithfulness: rules by role and depth, on samples that are then left out of any test.

How much a layer's positive contributions should be favoured (gamma), how small ones are damped (epsilon), and what
products, gates and softmax do, differs from model to model and from layer to layer. The search space is read from the
model: its layers, told apart by role and by how deep they lie, and those roles that have a choice. Optuna searches it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from lrp_fx.analysis import Facts
from lrp_fx.errors import InputError, NumericalError, module_path, require
from lrp_fx.evaluate.methods import lrp
from lrp_fx.evaluate.metrics import METRICS, Scene, Trial
from lrp_fx.evaluate.task import Task
from lrp_fx.plan import Plan
from lrp_fx.ruleset import RuleSet

#: roles that have a choice of rules beside their parameters
CHOICES: dict[str, tuple[str, ...]] = {
    "softmax": ("taylor", "stop", "gradient"),
    "gate": ("uniform", "signal-takes-all", "gradient"),
    "bilinear": ("uniform", "gradient"),
    "nonlinearity": ("identity", "gradient"),
    "normalization": ("identity", "gradient"),
}
GAMMA = (1e-3, 30.0)  #: below the double of the least value the layer has the epsilon rule
EPSILON = (1e-6, 1.0)
_LOWER_IS_BETTER = ("deletion", "gap")


@dataclass(frozen=True)
class Group:
    """Layers that share a rule.

    Attributes:
        role: their narrowest role.
        depth: 0 for those near the input, counted in groups of equally many layers.
        paths: of their modules.
    """

    role: str
    depth: int
    paths: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the group in a study."""
        return f"{self.role}/{self.depth}"


@dataclass(frozen=True)
class Space:
    """What is searched: groups of layers, and the roles that occur and have a choice."""

    groups: tuple[Group, ...]
    roles: tuple[str, ...]

    def document(self, base: RuleSet, values: Mapping[str, Any], name: str) -> RuleSet:
        """The rule set at one point of the space."""
        rules = {role: {"rule": values[role]} for role in self.roles}
        overrides: dict[str, dict[str, Any]] = {}
        for group in self.groups:
            gamma, epsilon = (_rounded(values[f"{group.key} {p}"]) for p in ("gamma", "epsilon"))
            rule: dict[str, Any] = {"rule": "epsilon", "epsilon": epsilon}
            if gamma >= 2 * GAMMA[0]:
                rule = {"rule": "generalised-gamma", "gamma": gamma, "epsilon": epsilon}
            for path in group.paths:
                overrides.setdefault(path, {})[group.role] = rule
        return base.altered(rules, overrides, name)


@dataclass(frozen=True)
class Tuned:
    """The best rule set found.

    Attributes:
        ruleset: the rule set; ``ruleset.save("tuned.toml")`` keeps it.
        value: its mean metric on the samples it was tuned on: an optimistic number, measure it on others.
        starts: the same for what the search started from.
        trials: how many rule sets were tried.
        study: the optuna study.
    """

    ruleset: RuleSet
    value: float
    starts: dict[str, float]
    trials: int
    study: Any = field(repr=False)


def find_space(facts: Facts, plan: Plan, depths: int) -> Space:
    """The layers of a captured model in ``depths`` groups per role, and its roles that have a choice."""
    layers = list(facts.layers.items())
    members: dict[tuple[str, int], dict[str, None]] = {}
    seen: set[tuple[str, str]] = set()
    for index, (node, layer) in enumerate(layers):
        role, path = layer.roles[0], module_path(node)
        if (role, path) in seen:  # applied again: weights that layers share keep their first place
            continue
        seen.add((role, path))
        depth = 0 if role == "first-layer" else index * depths // len(layers)
        members.setdefault((role, depth), {})[path] = None
    groups = tuple(Group(role, depth, tuple(paths)) for (role, depth), paths in members.items())
    present = {d.role for d in plan.decisions.values()} | set(plan.stopped.values())
    if "attention" in present:
        present |= {"bilinear", "softmax"}
    return Space(groups, tuple(role for role in CHOICES if role in present))


def tune(
    model: nn.Module,
    data: Task,
    metric: str = "abpc",
    base: str | RuleSet = "attnlrp",
    trials: int = 100,
    depths: int = 3,
    batch: int = 64,
    seed: int = 0,
    starts: Iterable[Mapping[str, Any]] = (),
    progress: bool = True,
) -> Tuned:
    """Search rules by role and depth for the largest mean ``metric`` on ``data``.

    Args:
        model: whose explanations are tuned.
        data: samples with targets and features, as :func:`lrp_fx.evaluate.evaluate` takes them.
        metric: what one of ``lrp_fx.evaluate.METRICS`` yields: "abpc", "insertion", "top1", "loo", ...; of "deletion"
            and "gap" the smallest is searched for.
        base: the rule set to start from; what the search does not touch stays as it is there.
        trials: rule sets to try.
        depths: into how many groups by depth the layers of a role are divided.
        batch: samples explained at a time.
        seed: of the search.
        starts: further points to try first, values by name as in ``study.best_params``.
        progress: whether to show a progress bar.

    Raises:
        InputError: for a metric that ``data`` cannot have.
        MissingExtraError: when optuna is not installed.
    """
    optuna: Any = require("optuna", "tune")
    task = dataclasses.replace(data, model=model)
    ruleset = RuleSet.load(base)
    scenes = [Scene(task, b) for b in task.batches(batch)]
    conversion, _ = task.converted._conversion((), scenes[0].batch.inputs)
    space = find_space(conversion.facts, conversion.under(ruleset).plan, depths)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 8))
    direction = "minimize" if metric in _LOWER_IS_BETTER else "maximize"
    study = optuna.create_study(direction=direction, sampler=sampler)
    named = _starts(space)
    for point in [*named.values(), *starts]:
        study.enqueue_trial(dict(point))

    def objective(trial: Any) -> float:
        values = {role: trial.suggest_categorical(role, CHOICES[role]) for role in space.roles}
        for group in space.groups:
            for key, (low, high) in (("gamma", GAMMA), ("epsilon", EPSILON)):
                name = f"{group.key} {key}"
                values[name] = trial.suggest_float(name, low, high, log=True)
        tried = space.document(ruleset, values, "trial")
        try:
            return measure(scenes, tried, metric)
        except NumericalError as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            task.converted.forget(tried)

    with _bar(progress) as bar:
        line = bar.add_task(f"tuning {task.name}", total=trials)
        study.optimize(objective, n_trials=trials, callbacks=[lambda *_: bar.advance(line)])
    best = space.document(ruleset, study.best_params, f"{ruleset.name}-tuned")
    first = {name: trial.value for name, trial in zip(named, study.trials, strict=False) if trial.value is not None}
    return Tuned(best, study.best_value, first, len(study.trials), study)


def measure(scenes: Sequence[Scene], ruleset: RuleSet, metric: str) -> float:
    """Mean of a metric over all samples under one rule set.

    Raises:
        InputError: when no metric of that name applies.
        NumericalError: when a relevance is not finite.
    """
    explain = lrp(ruleset).prepare(scenes[0].task)
    assert explain is not None
    values = []
    for scene in scenes:
        trial = Trial(scene, explain(scene.batch), sums_to_value=True)
        values.append(_measured(trial, metric))
    found = torch.cat(values)
    return float(found[~found.isnan()].double().mean())


def _measured(trial: Trial, metric: str) -> torch.Tensor:
    family = {"top1": "localisation", "iou": "localisation", "share": "completeness"}.get(metric, metric)
    found = METRICS[family](trial) if family in METRICS else {}
    if metric not in found:
        raise InputError(f"task {trial.scene.task.name!r} has no metric {metric!r}: choose among {', '.join(METRICS)}")
    return found[metric]


def _starts(space: Space) -> dict[str, dict[str, Any]]:
    """Points that are known to be good somewhere: no gamma, a little, much, only the positive; with either softmax."""
    gammas = {"epsilon": GAMMA[0], "gamma 0.05": 0.05, "gamma 0.25": 0.25, "positive": GAMMA[1]}
    points = {}
    for softmax in ("taylor", "stop") if "softmax" in space.roles else ("",):
        for name, gamma in gammas.items():
            roles = {role: CHOICES[role][0] for role in space.roles}
            if softmax:
                roles["softmax"] = softmax
            layers = {f"{g.key} gamma": gamma for g in space.groups} | {f"{g.key} epsilon": 1e-6 for g in space.groups}
            points[f"{name} {softmax}".strip()] = roles | layers
    return points


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
