"""Baselines through the evaluation's interface: exact where there is a truth, absent where they do not apply."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from models import build, few
from torch import nn

from lrp_fx.errors import InputError
from lrp_fx.evaluate import METHODS, Patches, Task, Tokens, evaluate, integrated_gradients, kernel_shap, lrp
from lrp_fx.evaluate.embedded import Embedder
from lrp_fx.evaluate.grad_cam import feature_maps
from lrp_fx.evaluate.perturbation import flipped_scores, leave_one_out
from lrp_fx.evaluate.rollout import grid
from lrp_fx.explain.reading import find_logits


@functools.cache  # one capture serves all tests of a model
def tokens(name):
    model, inputs = build(name)
    with torch.no_grad():
        logits = find_logits(model(**inputs))
    logits = logits[:, -1] if logits.dim() == 3 else logits
    return Task(name, model, inputs, logits.argmax(-1), Tokens(1, next(iter(inputs))))


@functools.cache
def picture(name, size=8):
    model, inputs = build(name)
    with torch.no_grad():
        target = model(**inputs).logits.argmax(-1)
    return Task(name, model, inputs, target, Patches(size, None, "pixel_values"))


def whole(task):
    return task.batch(slice(None))


def explained(task, name):
    return METHODS[name].prepare(task)(whole(task))


@pytest.mark.parametrize("make", [lambda: tokens("llama2"), lambda: tokens("flan-t5"), lambda: picture("vit")])
def test_the_graph_cut_at_its_sources_is_the_model(make):
    task = make()
    batch = whole(task)
    point = Embedder(task).point(batch)
    value = point.embedded.explained(*point.values, *point.rest)
    assert torch.allclose(value, task.score(batch.inputs, batch.target), atol=1e-9)
    leaves = tuple(v.clone().requires_grad_() for v in point.values)
    (gradient,) = torch.autograd.grad(point.embedded.explained(*leaves, *point.rest).sum(), leaves)
    assert gradient.shape == point.values[0].shape and float(gradient.abs().sum()) > 0


def test_gradients_at_the_sources_are_those_of_the_model():
    task = tokens("gpt2")
    embeddings = task.model.get_input_embeddings()(task.inputs["input_ids"]).detach().requires_grad_()
    logits = task.model(inputs_embeds=embeddings).logits[:, -1]
    (gradient,) = torch.autograd.grad(logits.gather(1, task.target[:, None]).sum(), embeddings)
    assert torch.allclose(explained(task, "gradient"), gradient.abs().sum(-1), atol=1e-9)
    assert torch.allclose(explained(task, "input_x_gradient"), (embeddings * gradient).sum(-1).detach(), atol=1e-9)


@pytest.mark.parametrize("make", [lambda: tokens("llama2"), lambda: picture("vit")])
def test_integrated_gradients_are_complete(make):
    task = make()
    found = evaluate(task, [integrated_gradients(steps=60)], ["completeness"], progress=False)
    gaps = found.values[found.values["metric"] == "gap"]["value"]
    assert len(gaps) == len(task) and gaps.max() < 1e-6


def test_integrated_gradients_of_a_square_by_hand():
    class Square(nn.Module):
        def forward(self, x):
            return x.flatten(1).square().sum(1, keepdim=True)

    x = torch.tensor([[[[1.0, 2.0], [3.0, -1.0]]]], dtype=torch.float64)
    task = Task("square", Square(), {"x": x}, torch.zeros(1, dtype=torch.long), Patches(1, (0.5,)))
    assert torch.allclose(explained(task, "integrated_gradients"), (x**2 - 0.25).flatten(1), atol=1e-9)


def test_smoothgrad_of_a_linear_model_is_its_gradient_and_repeats():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    task = Task("linear", model, {"input": x}, torch.tensor([0, 1, 0]), Patches(1, None, "input"))
    assert torch.allclose(explained(task, "smoothgrad"), model[1].weight.abs()[task.target].detach(), atol=1e-9)
    task = tokens("llama2")
    assert torch.equal(explained(task, "smoothgrad"), explained(task, "smoothgrad"))
    assert not torch.equal(explained(task, "smoothgrad"), explained(task, "gradient"))


def shapley(task):
    """Shapley values of all features by their definition."""
    batch = whole(task)
    count = batch.eligible.shape[1]
    subsets = list(itertools.product([False, True], repeat=count))
    values = flipped_scores(task, batch, ~torch.tensor(subsets).expand(len(batch), -1, -1))
    place = {subset: i for i, subset in enumerate(subsets)}
    found = torch.zeros(len(batch), count, dtype=torch.float64)
    for subset, i in itertools.product(subsets, range(count)):
        if not subset[i]:
            size = sum(subset)
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            larger = place[(*subset[:i], True, *subset[i + 1 :])]
            found[:, i] += weight * (values[:, larger] - values[:, place[subset]])
    return found


def test_kernel_shap_is_exact_on_a_linear_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    task = Task("linear", model, {"input": x}, torch.tensor([0, 1, 2]), Patches(1, (0.3,), "input"))
    found = kernel_shap(evaluations=200).prepare(task)(whole(task))
    assert torch.allclose(found.double(), shapley(task), atol=1e-5)
    assert torch.allclose(shapley(task), model[1].weight[task.target] * (x.flatten(1) - 0.3), atol=1e-9)


def test_kernel_shap_estimates_shapley_values_of_eligible_tokens_alone():
    eligible = torch.ones(2, 7, dtype=torch.bool)
    eligible[:, 0] = eligible[1, 6] = False
    task = dataclasses.replace(tokens("bert-classifier"), eligible=eligible)
    found = kernel_shap(evaluations=400).prepare(task)(whole(task))
    assert bool((found[~eligible] == 0).all())
    free = Task(task.name, task.model, {k: v[:1] for k, v in task.inputs.items()}, task.target[:1], _But(task))
    exact = shapley(free)
    scale = float(exact.abs().max())
    assert torch.allclose(found[:1, 1:].double(), exact, atol=0.05 * scale)


class _But:
    """The first sample's tokens but the first, as features: what that sample's eligible features are."""

    input = "input_ids"

    def __init__(self, task):
        self.task = task

    def pool(self, relevance):
        return relevance[:, 1:]

    def perturb(self, inputs, flipped):
        return self.task.features.perturb(inputs, torch.nn.functional.pad(flipped, (1, 0)))


def test_leave_one_out_is_exact():
    for task in (tokens("llama2"), picture("resnet", 16)):
        batch = whole(task)
        assert torch.allclose(explained(task, "leave_one_out"), leave_one_out(task, batch), atol=1e-9)
        changed = task.features.perturb(
            batch.inputs, torch.eye(batch.eligible.shape[1], dtype=torch.bool)[[1] * len(task)]
        )
        drop = task.score(batch.inputs, batch.target) - task.score(changed, batch.target)
        assert torch.allclose(explained(task, "leave_one_out")[:, 1], drop, atol=1e-9)


class TwoMaps(nn.Module):
    """Two feature maps, averaged: Grad-CAM is known."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[3.0, 1.0]]))

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


def test_grad_cam_by_hand():
    x = torch.tensor([[[[1.0, -2.0], [0.0, 4.0]]]], dtype=torch.float64)
    task = Task("maps", TwoMaps().double(), {"x": x}, torch.zeros(1, dtype=torch.long), Patches(1, (0.0,)))
    # gradients of the maps average to 3/4 and 1/4; maps are relu(x) and relu(-x)
    assert torch.allclose(explained(task, "grad_cam"), torch.tensor([[0.75, 0.5, 0.0, 3.0]]).double(), atol=1e-9)
    task = picture("resnet")
    maps = feature_maps(task.converted.specialization((), dict(task.inputs))[0].facts)
    assert tuple(maps[-1].meta["val"].shape[1:]) == (16, 4, 4)  # the last block's sum, after its activation
    assert maps[-1].target.__name__.startswith("relu")


class OneAttention(nn.Module):
    """Attention with given weights in its scores, read at the first position."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.query, self.key, self.value = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.head = nn.Linear(4, 3, bias=False)

    def weights(self, h):
        return torch.softmax(self.query(h) @ self.key(h).transpose(-1, -2), -1)

    def forward(self, input_ids):
        h = self.table(input_ids)
        return self.head((h + self.weights(h) @ self.value(h))[:, 0])


def test_rollouts_of_one_attention_by_hand():
    torch.manual_seed(1)
    model = OneAttention().double()
    ids = torch.randint(0, 9, (2, 5))
    task = Task("attention", model, {"input_ids": ids}, torch.tensor([0, 2]), Tokens(0))
    h = model.table(ids)
    weights = model.weights(h)
    first = torch.eye(5, dtype=torch.float64)[0]
    assert torch.allclose(explained(task, "attention_rollout"), (weights[:, 0] + first) / 2, atol=1e-9)
    gradient = (model.value(h) @ model.head.weight[task.target].unsqueeze(-1))[
        ..., 0
    ]  # of the logit, by row 0 of the weights
    expected = first + (weights[:, 0] * gradient).clamp(min=0)
    assert torch.allclose(explained(task, "gradient_rollout"), expected, atol=1e-9)


def test_atman_of_one_attention_by_hand():
    torch.manual_seed(1)
    model = OneAttention().double()
    ids = torch.randint(0, 9, (2, 5))
    task = Task("attention", model, {"input_ids": ids}, torch.tensor([0, 2]), Tokens(0))
    h = model.table(ids)
    scores = model.query(h) @ model.key(h).transpose(-1, -2)
    scores[:, :, 3] *= 0.1
    logits = model.head((h + torch.softmax(scores, -1) @ model.value(h))[:, 0])
    drop = (model(ids) - logits).gather(1, task.target[:, None])[:, 0]
    assert torch.allclose(explained(task, "atman")[:, 3], drop, atol=1e-9)


@pytest.mark.parametrize("name", few(["attention_rollout", "gradient_rollout", "atman"], "gradient_rollout"))
@pytest.mark.parametrize("make", [lambda: tokens("mixtral"), lambda: tokens("flan-t5"), lambda: picture("deit")])
def test_attention_methods_run_on_models_of_any_kind(name, make):
    task = make()
    found = explained(task, name)
    assert found.shape == whole(task).eligible.shape and bool(found.isfinite().all())
    assert float(found.std(1).min()) > 0


def test_attention_rollout_of_a_causal_model_sums_to_one_and_a_class_token_keeps_its_part():
    assert torch.allclose(explained(tokens("llama2"), "attention_rollout").sum(1), torch.ones(2).double(), atol=1e-9)
    assert (
        float(explained(picture("vit"), "attention_rollout").sum()) / 64 < 2
    )  # 64 pixels a patch; the rest is the class token's


def test_patches_among_positions():
    assert grid(17, 32, 32) == (4, 4) and grid(16, 32, 32) == (4, 4) and grid(9, 16, 32) == (2, 4)
    assert grid(3, 32, 32) == (0, 0)  # one patch and two others: no image


def test_methods_that_do_not_apply_are_absent():
    methods = [METHODS[n] for n in ("grad_cam", "attention_rollout", "gradient_rollout", "atman", "gradient")]
    text = evaluate(tokens("llama2"), methods, ["abpc"], progress=False)
    assert text.cost.set_index("method")["samples"].gt(0).to_dict() == {
        "grad_cam": False, "attention_rollout": True, "gradient_rollout": True, "atman": True, "gradient": True,
    }  # fmt: skip
    image = evaluate(picture("resnet"), methods, ["abpc"], progress=False)
    assert image.cost.set_index("method")["samples"].gt(0).to_dict() == {
        "grad_cam": True, "attention_rollout": False, "gradient_rollout": False, "atman": False, "gradient": True,
    }  # fmt: skip


def test_lrp_is_what_explain_gives_and_all_rule_sets_share_one_capture():
    task = dataclasses.replace(tokens("llama2"))
    batch = whole(task)
    for rules in ("attnlrp", "cp_lrp"):
        expected = task.converted.explain(**batch.inputs, target=batch.target, rules=rules).relevance["input_ids"]
        assert torch.equal(lrp(rules).prepare(task)(batch), expected)
    assert "captures=1" in repr(task.converted)


def test_random_repeats_and_inputs_without_gradient_are_named():
    task = tokens("llama2")
    assert torch.equal(explained(task, "random"), explained(task, "random"))

    class Masked(nn.Module):
        def forward(self, x, keep):
            return (x * (keep > 0)).sum(1, keepdim=True)

    inputs = {"x": torch.rand(2, 3), "keep": torch.ones(2, 3, dtype=torch.long)}
    task = Task("masked", Masked(), inputs, torch.zeros(2, dtype=torch.long), Tokens(0, "keep"))
    with pytest.raises(InputError, match="has no gradient"):
        explained(task, "gradient")
