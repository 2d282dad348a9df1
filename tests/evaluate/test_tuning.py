"""Tuning: the space is read from the model, the search finds what is better, rule sets survive their TOML file."""

import functools

import optuna
import pytest
import torch
from models import build
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, RuleSetError
from lrp_fx.evaluate import Patches, Task, Tokens
from lrp_fx.rules.ruleset import Rule, RuleSet
from lrp_fx.tuning import CHOICES, Group, Space, _descend, find_space


def picture_task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip
    x = torch.rand(16, 1, 8, 8)
    return Task("pictures", model.eval(), {"input": x}, model(x).argmax(-1), Patches(2, (0.0,), input="input"))


def test_the_space_is_read_from_the_model():
    model, inputs = build("llama2", torch.float32)
    specialization = lrp_fx.convert(model, **inputs).current
    space = find_space(specialization.facts, specialization.under(lrp_fx.RuleSet.load("attnlrp")).plan, 2)
    assert [g.key for g in space.groups] == ["attention-projection/0", "dense/0", "attention-projection/1", "dense/1"]
    assert "model.layers.0.self_attn.q_proj" in space.groups[0].paths
    assert "model.layers.1.mlp.down_proj" in space.groups[3].paths
    assert set(space.roles) == {"softmax", "gate", "bilinear", "nonlinearity", "normalization"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("alpha-beta", {"alpha": 1.5, "beta": 0.5, "epsilon": 0.01}),
        ("generalised-gamma", {"gamma": 3.0, "epsilon": 0.01}),
        ("z-plus", {"epsilon": 0.01}),
    ],
)
def test_a_point_of_the_space_is_a_rule_set(kind, expected):
    space = Space((Group(("dense", "linear"), 0, ("fc",)),), ())
    point = {"dense/0": kind, "dense/0 beta": 0.5, "dense/0 gamma": 3.0, "dense/0 epsilon": 0.01}
    found = space.document(lrp_fx.RuleSet.load("attnlrp"), point, "point")
    assert found.rule(("dense", "linear"), "fc", "") == Rule(kind, expected)
    assert space.point(found) == {"dense/0 beta": 1.0, "dense/0 gamma": 0.25} | {
        k: v for k, v in point.items() if k in ("dense/0", "dense/0 epsilon") or k.split()[-1] in expected
    }


@pytest.fixture(scope="module")
def tuned():
    task = picture_task()
    return task, lrp_fx.tune(task.model, task, trials=24, depths=2, progress=False)


def test_the_best_of_the_search_is_what_it_says(tuned):
    task, found = tuned
    assert found.trials == 24
    assert found.value >= max(found.starts.values())
    shipped = ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "vit_gamma", "guided_backprop")
    methods = [lrp_fx.evaluate.lrp(name) for name in shipped]
    results = lrp_fx.evaluate.evaluate(task, methods, ["abpc"], progress=False)
    measured = results.summary()["mean"].droplevel(["task", "metric"])
    for name in shipped:  # what ships is where it starts
        assert found.starts[name] == pytest.approx(measured[name], rel=1e-3)
    results = lrp_fx.evaluate.evaluate(task, [lrp_fx.evaluate.lrp(found.ruleset)], ["abpc"], progress=False)
    assert float(results.values["value"].mean()) == pytest.approx(found.value, rel=1e-5)


def test_pooling_has_its_choices(tuned):
    _, found = tuned
    assert {t.params["selection"] for t in found.study.trials} == {"winner-takes-all", "proportional", "even"}
    assert found.ruleset.rules["selection"].name == found.study.best_params["selection"]


def test_a_tuned_rule_set_survives_its_file(tuned, tmp_path):
    task, found = tuned
    path = found.ruleset.save(tmp_path / "tuned.toml")
    again = lrp_fx.RuleSet.load(path)
    assert again == found.ruleset
    x = task.inputs["input"][:4]
    a, b = (lrp_fx.convert(task.model, x, rules=r).explain(x).relevance["input"] for r in (path, found.ruleset))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["attnlrp", "mamba_lrp", "epsilon_gamma_box", "pa_lrp", "guided_backprop"])
def test_every_rule_set_survives_its_file(name, tmp_path):
    ruleset = lrp_fx.RuleSet.load(name)
    assert lrp_fx.RuleSet.load(ruleset.save(tmp_path / "copy.toml")) == ruleset


def test_a_search_starts_where_it_is_told():
    task = picture_task()
    first = lrp_fx.tune(task.model, task, trials=1, depths=1, progress=False)
    assert first.trials == len(first.starts) > 4
    start = first.study.trials[2].params | {"dense/0 epsilon": 0.125}
    found = lrp_fx.tune(task.model, task, trials=1, depths=1, starts=[start], progress=False)
    assert found.study.trials[-1].params == start


def test_graphs_of_tried_rule_sets_are_dropped(tuned):
    task, _ = tuned
    xmodel = lrp_fx.convert(task.model, task.inputs["input"][:2])
    ruleset = lrp_fx.RuleSet.load("epsilon_plus")
    xmodel.explain(task.inputs["input"][:2], rules=ruleset)
    specialization = xmodel.current
    assert ruleset.key in specialization.rewritten
    xmodel.forget(ruleset)
    assert ruleset.key not in specialization.rewritten
    assert all(key != ruleset.key for key, _ in specialization.sweepers)


def test_what_cannot_be_tuned_is_named(tmp_path):
    task = picture_task()
    with pytest.raises(InputError, match="top1"):
        lrp_fx.tune(task.model, task, metric="top1", trials=1, progress=False)
    with pytest.raises(RuleSetError, match="toml"):
        lrp_fx.RuleSet.load("attnlrp").save(tmp_path / "rules.json")


@pytest.mark.slow
def test_attention_has_its_choices():
    model, inputs = build("gpt2", torch.float32)
    ids = inputs["input_ids"]
    task = Task("text", model, {"input_ids": ids}, model(ids).logits[:, -1].argmax(-1), Tokens(0))
    found = lrp_fx.tune(model, task, trials=9, depths=1, progress=False)
    assert {t.params["softmax"] for t in found.study.trials} == {"taylor", "stop", "gradient"}
    assert set(found.starts) >= {"attnlrp", "cp_lrp", "gradient"}


def test_the_search_changes_one_choice_after_another_until_nothing_gains():
    """A sum of gains, one for each right choice: every one of them is found, in about two passes."""
    space = Space((Group(("dense",), 0, ("a",)), Group(("first-layer",), 0, ("b",))), ("gate", "bilinear"))
    wanted = {"gate": "gradient", "bilinear": "gradient", "dense/0": "alpha-beta", "dense/0 beta": 0.3}
    wanted |= {"first-layer/0": "flat"}

    def objective(trial):
        point = space.point(RuleSet.load("attnlrp"))
        kinds = {**CHOICES, **{g.key: g.kinds for g in space.groups}}
        values = {
            k: trial.suggest_categorical(k, kinds[k]) if k in kinds else trial.suggest_float(k, 1e-6, 30.0)
            for k in point
        }
        return sum(values[k] == v for k, v in wanted.items())

    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(space.point(RuleSet.load("attnlrp")))
    study.optimize(objective, n_trials=1)
    one_pass = sum(len(changes) for changes in space.coordinates())
    made = _descend(study, functools.partial(study.optimize, objective), space, 1000)
    assert study.best_value == len(wanted)
    assert one_pass - 4 <= made <= 2 * one_pass
    assert _descend(study, functools.partial(study.optimize, objective), space, 3) == 3


def test_rule_sets_that_are_tried_are_not_checked(monkeypatch):
    """A search explains, and pays for nothing else; what it found is checked where it is first used."""
    from lrp_fx.explain import Sweeper

    swept, account = [], Sweeper.account
    monkeypatch.setattr(Sweeper, "account", lambda self, *rest: swept.append(1) or account(self, *rest))
    task = picture_task()
    found = lrp_fx.tune(task.model, task, trials=1, depths=1, progress=False)
    assert found.trials > 1 and not swept
    task.converted.explain(**task.inputs, target=task.target, rules=found.ruleset)
    assert len(swept) == 1
