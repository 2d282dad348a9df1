"""Search for a faithful rule set: rules by role and depth, on samples that must not be in the test set.

The best gamma and epsilon of a layer, and the best rules of products, gates and softmax, differ from model to model and
from layer to layer. The search space comes from the model: its layers, grouped by role and depth, and its roles with a
choice of rules. Optuna searches it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lrp_fx.analysis import Facts
from lrp_fx.errors import InputError, NumericalError
from lrp_fx.evaluate.measure import progress_bar
from lrp_fx.evaluate.methods import lrp
from lrp_fx.evaluate.metrics import METRICS, Scene, Trial
from lrp_fx.evaluate.task import Task
from lrp_fx.extras import require
from lrp_fx.graph.location import module_path
from lrp_fx.plan import Plan
from lrp_fx.rules.ruleset import RuleSet, available

#: rules of a layer; the first layer has two more
KINDS = ("epsilon", "generalised-gamma", "z-plus", "alpha-beta")
FIRST = (*KINDS, "flat", "w-square")
#: roles with a choice of rules
CHOICES: dict[str, tuple[str, ...]] = {
    "softmax": ("taylor", "stop", "gradient"),
    "gate": ("uniform", "signal-takes-all", "gradient"),
    "bilinear": ("uniform", "gradient"),
    "nonlinearity": ("identity", "gradient", "guided-backprop"),
    "normalization": ("identity", "gradient"),
    "selection": ("winner-takes-all", "proportional", "even"),
}
#: parameters, searched on a logarithmic scale: smallest, largest and default value
PARAMETERS = {"gamma": (0.01, 30.0, 0.25), "beta": (0.003, 2.0, 1.0), "epsilon": (1e-6, 1.0, 1e-6)}
#: parameters of a rule besides epsilon
FURTHER: dict[str, tuple[str, ...]] = {"generalised-gamma": ("gamma",), "alpha-beta": ("beta",)}
#: values of the coordinate-wise first part of the search
GRID = {"epsilon": (1e-6, 1e-2), "gamma": (0.1, 1.0, 10.0), "beta": (0.03, 0.3, 1.0)}
#: rule outside of the space -> the nearest rule in it
_NEAREST = {"gamma": "generalised-gamma"}
_LOWER_IS_BETTER = ("deletion", "gap")


@dataclass(frozen=True)
class Group:
    """Layers that share a rule.

    Attributes:
        roles: their roles, the most specific first.
        depth: index of the depth group, 0 near the input; the groups have equally many layers.
        paths: paths of their modules.
    """

    roles: tuple[str, ...]
    depth: int
    paths: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the group in a study."""
        return f"{self.roles[0]}/{self.depth}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Rules to choose from."""
        return FIRST if "first-layer" in self.roles else KINDS


@dataclass(frozen=True)
class Space:
    """The search space: groups of layers, and the model's roles with a choice of rules."""

    groups: tuple[Group, ...]
    roles: tuple[str, ...]

    def document(self, base: RuleSet, values: Mapping[str, Any], name: str) -> RuleSet:
        """The rule set at one point of the space."""
        rules = {role: {"rule": values[role]} for role in self.roles}
        overrides: dict[str, dict[str, Any]] = {}
        for group in self.groups:
            kind = values[group.key]
            rule: dict[str, Any] = {"rule": kind}
            for key in ("epsilon", *FURTHER.get(kind, ())):
                rule[key] = _rounded(values[f"{group.key} {key}"])
            if kind == "alpha-beta":
                rule["alpha"] = 1 + rule["beta"]
            for path in group.paths:
                overrides.setdefault(path, {})[group.roles[0]] = rule
        return base.altered(rules, overrides, name)

    def coordinates(self) -> list[list[dict[str, Any]]]:
        """For every role and group, the changes of a point: one for each rule, with parameters of :data:`GRID`."""
        coordinates: list[list[dict[str, Any]]] = [[{role: rule} for rule in CHOICES[role]] for role in self.roles]
        for group in self.groups:
            changes: list[dict[str, Any]] = []
            for kind in group.kinds:
                names = FURTHER.get(kind, ("epsilon",) if kind == "epsilon" else ())
                values = [
                    {f"{group.key} {name}": v for name, v in zip(names, grid_point, strict=True)}
                    for grid_point in itertools.product(*(GRID[name] for name in names))
                ]
                changes += [{group.key: kind} | value for value in values]
            coordinates.append(changes)
        return coordinates

    def point(self, ruleset: RuleSet) -> dict[str, Any]:
        """The point of the space nearest to a rule set; the first choice in place of a rule outside of the space."""
        values: dict[str, Any] = {}
        for role in self.roles:
            rule_name = ruleset.rule(role, "", "").name
            values[role] = rule_name if rule_name in CHOICES[role] else CHOICES[role][0]
        for group in self.groups:
            rule = ruleset.rule(group.roles, group.paths[0], "")
            kind = _NEAREST.get(rule.name, rule.name)
            values[group.key] = kind if kind in group.kinds else KINDS[0]
            for key, (low, high, usual) in PARAMETERS.items():
                values[f"{group.key} {key}"] = min(max(rule.parameters.get(key, usual), low), high)
        return values


@dataclass(frozen=True)
class Tuned:
    """The best rule set found.

    Attributes:
        ruleset: the rule set; ``ruleset.save("tuned.toml")`` writes it.
        value: its mean metric on the tuning samples, which is optimistic: measure it on other samples.
        starts: mean metric of each shipped rule set, by name.
        trials: number of rule sets tried.
        study: the optuna study.
    """

    ruleset: RuleSet
    value: float
    starts: dict[str, float]
    trials: int
    study: Any = field(repr=False)


def find_space(facts: Facts, plan: Plan, depths: int) -> Space:
    """The layers of a captured model in ``depths`` groups per role, and its roles with a choice of rules."""
    layers = list(facts.layers.items())
    members: dict[tuple[tuple[str, ...], int], dict[str, None]] = {}
    seen: set[tuple[str, str]] = set()
    for index, (node, layer) in enumerate(layers):
        role, path = layer.roles[0], module_path(node)
        if (role, path) in seen:  # a module that is called again counts at its first call
            continue
        seen.add((role, path))
        depth = 0 if "first-layer" in layer.roles else index * depths // len(layers)
        members.setdefault((layer.roles, depth), {})[path] = None
    groups = tuple(Group(roles, depth, tuple(paths)) for (roles, depth), paths in members.items())
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

    The search starts with every shipped rule set, as its nearest point in the space, so that the result is at least as
    good on ``data`` as these points. From the best of them it changes one role or group of layers after another until
    that gains nothing (for at most two thirds of the remaining trials). Then Optuna's sampler continues.

    Args:
        model: the model to explain.
        data: samples with targets and features, as for :func:`lrp_fx.evaluate.evaluate`.
        metric: a value of one of ``lrp_fx.evaluate.METRICS``: "abpc", "insertion", "top1", "loo", ...; "deletion" and
            "gap" are minimised, all others maximised.
        base: the rule set to change; rules outside of the search space stay as they are there.
        trials: number of rule sets to try; at least the number of starting points.
        depths: number of depth groups per role.
        batch: samples explained at a time.
        seed: random seed of the search.
        starts: further points to try first, values by name as in ``study.best_params``.
        progress: whether to show a progress bar.

    Raises:
        InputError: for a metric that does not apply to ``data``.
        MissingExtraError: if optuna is not installed.
    """
    optuna: Any = require("optuna", "tune")
    task = dataclasses.replace(data, model=model)
    ruleset = RuleSet.load(base)
    scenes = [Scene(task, b) for b in task.batches(batch)]
    specialization, _ = task.converted.specialization((), scenes[0].batch.inputs)
    space = find_space(specialization.facts, specialization.under(ruleset).plan, depths)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 8), multivariate=True)
    direction = "minimize" if metric in _LOWER_IS_BETTER else "maximize"
    study = optuna.create_study(direction=direction, sampler=sampler)
    named = _starts(space)
    begun = len(named) + len(starts := list(starts))
    trials = max(trials, begun)
    for point in [*named.values(), *starts]:
        study.enqueue_trial(dict(point))

    def objective(trial: Any) -> float:
        values = {role: trial.suggest_categorical(role, CHOICES[role]) for role in space.roles}
        for group in space.groups:
            values[group.key] = trial.suggest_categorical(group.key, group.kinds)
            for key, (low, high, _) in PARAMETERS.items():
                name = f"{group.key} {key}"
                values[name] = trial.suggest_float(name, low, high, log=True)
        candidate = space.document(ruleset, values, "trial")
        try:
            return measure(scenes, candidate, metric)
        except NumericalError as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            task.converted.forget(candidate)

    with progress_bar(progress) as bar:
        line = bar.add_task(f"tuning {task.name}", total=trials)
        run = functools.partial(study.optimize, objective, callbacks=[lambda *_: bar.advance(line)])
        run(n_trials=begun)
        run(n_trials=trials - begun - _descend(study, run, space, (trials - begun) * 2 // 3))
    best = space.document(ruleset, study.best_params, f"{ruleset.name}-tuned")
    first = {name: trial.value for name, trial in zip(named, study.trials, strict=False) if trial.value is not None}
    return Tuned(best, study.best_value, first, len(study.trials), study)


def _descend(study: Any, run: Callable[..., None], space: Space, budget: int) -> int:
    """Coordinate descent: try a few rules for one role or group after another, until none gains; returns the number of
    trials."""
    trials, best = 0, -1
    while best != study.best_trial.number:
        best = study.best_trial.number
        for changes in space.coordinates():
            for change in changes:
                point = study.best_params
                if change.items() <= point.items():
                    continue
                if trials == budget:
                    return trials
                study.enqueue_trial(point | change)
                run(n_trials=1)
                trials += 1
    return trials


def measure(scenes: Sequence[Scene], ruleset: RuleSet, metric: str) -> float:
    """Mean of a metric over all samples under one rule set, without the first check: a search tries hundreds.

    Raises:
        InputError: if no metric of that name applies.
        NumericalError: if a relevance is not finite.
    """
    explain = lrp(ruleset, check=False).prepare(scenes[0].task)
    assert explain is not None
    values = []
    for scene in scenes:
        trial = Trial(scene, explain(scene.batch), sums_to_value=True)
        values.append(_measured(trial, metric))
    scores = torch.cat(values)
    return float(scores[~scores.isnan()].double().mean())


def _measured(trial: Trial, metric: str) -> torch.Tensor:
    family = {"top1": "localisation", "iou": "localisation", "share": "completeness"}.get(metric, metric)
    scores = METRICS[family](trial) if family in METRICS else {}
    if metric not in scores:
        raise InputError(f"task {trial.scene.task.name!r} has no metric {metric!r}: choose among {', '.join(METRICS)}")
    return scores[metric]


def _starts(space: Space) -> dict[str, dict[str, Any]]:
    """The shipped rule sets as points of the space; equal points are tried once."""
    points: dict[str, dict[str, Any]] = {}
    for name in available():
        point = space.point(RuleSet.load(name))
        if point not in points.values():
            points[name] = point
    return points


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
