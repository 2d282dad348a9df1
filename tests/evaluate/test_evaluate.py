"""Metrics of explanations against values computed by hand, and what an evaluation reports."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from typer.testing import CliRunner

import lrp_fx
from lrp_fx.cli.evaluate import text_task
from lrp_fx.cli.main import app
from lrp_fx.errors import InputError, NumericalError
from lrp_fx.evaluate import (
    METHODS,
    Batch,
    Curves,
    Method,
    Patches,
    Results,
    Task,
    Tokens,
    Trial,
    evaluate,
    find_methods,
    perturbation,
    randomisation,
)
from lrp_fx.evaluate.metrics import Scene, completeness, leave_one_out_correlation, localisation
from lrp_fx.evaluate.perturbation import leave_one_out, ranks
from lrp_fx.evaluate.randomisation import from_the_top
from lrp_fx.evaluate.results import bootstrap

EFFECTS = torch.tensor(
    [[3.0, -1.0, 2.0, 0.5], [-2.0, 4.0, 1.0, 0.25]], dtype=torch.float64
)  # of the pixels of `linear`


class Linear(nn.Module):
    """(B, 1, 1, 4) pixels -> (B, 1): their weighed sum plus 10; a pixel is taken away by 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return (x.flatten(1) @ self.weight + 10.0)[:, None]


def linear(**fields):
    """EFFECTS are what the pixels add to the output, and so what leave-one-out gives."""
    x = (EFFECTS / Linear().weight.detach()).view(2, 1, 1, 4)
    return Task("linear", Linear(), {"x": x}, torch.zeros(2, dtype=torch.long), Patches(1, (0.0,)), **fields)


def whole(task):
    return task.batch(slice(None))


def given(relevance, name="given"):
    return Method(name, lambda task: lambda batch: relevance[: len(batch)])


def test_curves_of_a_linear_model_by_hand():
    task = linear()
    curves = perturbation(task, whole(task), EFFECTS, steps=4)
    # sample 0: value 14.5; most relevant first takes away 3, 2, 0.5, -1
    assert curves.most_first[0].tolist() == pytest.approx([14.5, 11.5, 9.5, 9.0, 10.0], abs=1e-12)
    assert curves.least_first[0].tolist() == pytest.approx([14.5, 15.5, 15.0, 13.0, 10.0], abs=1e-12)
    assert float(curves.abpc[0]) == pytest.approx((4 + 5.5 + 4 + 0) / 4, abs=1e-12)
    assert float(curves.deletion[0]) == pytest.approx((14.5 / 2 + 11.5 + 9.5 + 9.0 + 10 / 2) / 4, abs=1e-12)
    assert float(curves.insertion[0]) == pytest.approx((10 / 2 + 13.0 + 15.0 + 15.5 + 14.5 / 2) / 4, abs=1e-12)
    assert torch.allclose(curves.insertion - curves.deletion, curves.abpc, atol=1e-12)


def test_true_effects_have_the_largest_area_of_all_orders():
    task = linear()
    batch = whole(task)
    best = perturbation(task, batch, EFFECTS, steps=4).abpc
    areas = []
    for order in itertools.permutations(range(4)):
        areas.append(perturbation(task, batch, torch.tensor(order).double().expand(2, -1), steps=4).abpc)
    assert torch.allclose(torch.stack(areas).amax(0), best, atol=1e-12)
    assert torch.allclose(torch.stack(areas).amin(0), -best, atol=1e-12)
    found = evaluate(task, find_methods(["input_x_gradient"]), ["abpc"], steps=4, progress=False)
    assert found.values["value"].tolist() == pytest.approx(best.tolist(), abs=1e-12)


def test_features_that_are_not_eligible_stay():
    eligible = torch.tensor([[True, True, False, True], [True, False, True, False]])
    task = linear(eligible=eligible)
    curves = perturbation(task, whole(task), EFFECTS, steps=3)
    assert curves.most_first[0].tolist() == pytest.approx([14.5, 11.5, 11.0, 12.0], abs=1e-12)
    assert curves.most_first[:, -1].tolist() == pytest.approx([12.0, 10 + 4 + 0.25], abs=1e-12)
    assert torch.equal(ranks(EFFECTS, eligible)[0], torch.tensor([0, 2, 3, 1]))


def test_the_orders_are_reverse_to_each_other_whatever_the_portions():
    task = linear()
    batch = whole(task)
    for steps in (1, 2, 3, 7, 10):
        curves = perturbation(task, batch, EFFECTS, steps)
        mirrored = perturbation(task, batch, -EFFECTS, steps)
        assert torch.allclose(curves.most_first, mirrored.least_first, atol=1e-12)
        assert curves.most_first.shape == (2, steps + 1)


def test_tokens_are_replaced_and_sequences_keep_their_padding():
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    flipped = torch.tensor([[True, False, True], [False, True, False]])
    assert Tokens(1).perturb({"input_ids": ids}, flipped)["input_ids"].tolist() == [[1, 6, 1], [8, 1, 0]]


def test_leave_one_out_is_what_a_feature_adds():
    task = linear()
    assert torch.allclose(leave_one_out(task, whole(task)), EFFECTS, atol=1e-12)


def test_top1_and_intersection_over_union_by_hand():
    annotated = torch.tensor([[False, True, True, False], [False, False, False, False]])
    task = linear(annotated=annotated)
    found = localisation(
        Trial(Scene(task, whole(task)), EFFECTS)
    )  # sample 0: places 0 and 2 lead, 1 and 2 are annotated
    assert float(found["top1"][0]) == 0.0 and float(found["iou"][0]) == pytest.approx(1 / 3, abs=1e-6)
    assert bool(found["top1"][1].isnan()) and bool(found["iou"][1].isnan())  # nothing annotated: nothing said
    exact = localisation(Trial(Scene(task, whole(task)), annotated.double()))
    assert float(exact["top1"][0]) == 1.0 and float(exact["iou"][0]) == 1.0
    assert localisation(Trial(Scene(linear(), whole(linear())), EFFECTS)) == {}


def test_shares_of_positive_relevance_by_hand():
    annotated = torch.tensor([[True, False, False, False], [False, True, True, False]])
    blank = torch.tensor([[False, False, True, True], [True, False, False, False]])
    relevance = torch.tensor([[3.0, 1.0, 1.0, -5.0], [-1.0, -2.0, -3.0, -4.0]], dtype=torch.float64)
    task = linear(annotated=annotated, blank=blank)
    found = evaluate(task, [given(relevance)], ("shares",), progress=False).values
    values = {key: part["value"].tolist() for key, part in found.groupby("metric")}
    assert values == {"inside": [3 / 5, 0.0], "blank": [1 / 5, 0.0]}  # nothing positive: no share of it
    plain = evaluate(linear(), [given(relevance)], ("shares",), progress=False).values
    assert len(plain) == 0


@pytest.mark.parametrize("channels", [False, True])
def test_patches_have_two_sides_and_spectrograms_no_channels(channels):
    x = torch.arange(2 * 4 * 6.0).view(2, 4, 6)
    x = x[:, None] if channels else x
    patches = Patches((2, 3), (-1.0,))
    pooled = patches.pool(x)
    image = x.reshape(2, 2, 2, 2, 3)
    torch.testing.assert_close(pooled, image.sum((2, 4)).flatten(1))
    gone = torch.tensor([[True, False, False, False], [False, False, True, True]])
    perturbed = patches.perturb({"x": x}, gone)["x"]
    assert perturbed.shape == x.shape
    assert torch.equal(perturbed.reshape(2, 2, 2, 2, 3) == -1, gone.view(2, 2, 1, 2, 1).expand(2, 2, 2, 2, 3))


def test_rank_correlation_with_leave_one_out():
    task = linear()
    scene = Scene(task, whole(task))
    assert leave_one_out_correlation(Trial(scene, EFFECTS**3))["loo"].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert leave_one_out_correlation(Trial(scene, -EFFECTS))["loo"].tolist() == pytest.approx([-1.0, -1.0], abs=1e-12)
    assert leave_one_out_correlation(Trial(scene, torch.ones(2, 4)))["loo"].tolist() == [0.0, 0.0]
    one_swap = torch.tensor([[3.0, -1.0, 0.5, 2.0]]).expand(2, -1)  # sample 0: two neighbours change places
    assert float(leave_one_out_correlation(Trial(scene, one_swap))["loo"][0]) == pytest.approx(
        1 - 6 * 2 / 60, abs=1e-12
    )


def test_completeness_by_hand():
    task = linear()
    scene = Scene(task, whole(task))
    assert completeness(Trial(scene, EFFECTS + 1))["gap"].tolist() == pytest.approx([4.0, 4.0], abs=1e-12)
    share = completeness(Trial(scene, EFFECTS, sums_to_value=True))["share"]
    assert share.tolist() == pytest.approx([4.5 / 14.5, 3.25 / 13.25], abs=1e-12)


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 200)
    low, high = bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)  # of a mean of 200 normal values
    assert bootstrap(values) == (low, high) and bootstrap(values, seed=1) != (low, high)
    assert bootstrap(np.array([3.0])) == (3.0, 3.0)


def test_results_summarise_save_and_load(tmp_path):
    annotated = torch.tensor([[False, True, True, False], [True, False, False, False]])
    task = linear(annotated=annotated)
    found = evaluate(
        task, [given(EFFECTS), find_methods(["grad_cam", "attention_rollout"])[1]], batch=1, progress=False
    )
    summary = found.summary()
    mean, low, high, samples = summary.loc[("linear", "abpc", "given")]
    assert low <= mean <= high and samples == 2
    assert set(summary.index.get_level_values("method")) == {"given"}
    absent = found.cost.set_index("method").loc["attention_rollout"]
    assert absent["samples"] == 0 and np.isnan(absent["seconds"])
    found.save(tmp_path / "results")
    again = Results.load(tmp_path / "results")
    assert again.summary().equals(summary)
    assert len(Results.concat([found, again]).values) == 2 * len(found.values)


def test_limited_methods_see_fewer_samples():
    limited = Method("limited", given(EFFECTS).prepare, limit=1)
    found = evaluate(linear(), [limited, given(EFFECTS)], ["abpc"], batch=2, progress=False)
    assert found.cost["samples"].tolist() == [1, 2]


def test_plots_show_every_method(tmp_path):
    found = evaluate(linear(), [given(EFFECTS, "one"), given(-EFFECTS, "two")], progress=False)
    figure = found.plot("abpc")
    curves, bars = figure.axes
    assert [t.get_text() for t in curves.get_legend().get_texts()] == ["one", "two"]
    assert [b.get_width() > 0 for b in bars.patches] == [True, False]
    figure.savefig(tmp_path / "plot.png")
    with pytest.raises(InputError, match="was not measured"):
        found.plot("nonsense")


def test_randomisation_tells_a_method_that_ignores_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    task = Task("mlp", model, {"input": x}, torch.zeros(6, dtype=torch.long), Patches(1, (0.0,), "input"))
    blind = Method("blind", lambda task: lambda batch: batch.inputs["input"].flatten(1))
    weights = [p.clone() for p in model.parameters()]
    same = randomisation(task, blind, batch=4, stages=2)
    assert all(v.tolist() == pytest.approx([1.0] * 6) for v in same.values())
    changed = randomisation(task, METHODS["attnlrp"], batch=4, stages=2)
    assert list(changed) == ["randomised 50%", "randomised 100%"]
    assert float(changed["randomised 100%"].mean()) < 0.6
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))  # the model is left alone


def test_parameters_are_drawn_anew_from_the_output_down():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    captured = lrp_fx.convert(model, torch.randn(2, 4)).current.captured
    groups = from_the_top(model, captured)
    assert [[tuple(p.shape) for p in group] for group in groups] == [[(2, 5), (2,)], [(5, 6)], [(6, 4), (6,)]]


@pytest.mark.parametrize(
    ("relevance", "error", "message"),
    [
        (torch.zeros(2, 0), InputError, "one number per feature"),
        (torch.zeros(2, 3), InputError, "one number per feature"),
        (torch.full((2, 4), float("nan")), NumericalError, "not finite"),
    ],
)
def test_relevance_that_cannot_be_evaluated(relevance, error, message):
    with pytest.raises(error, match=message):
        evaluate(linear(), [given(relevance)], progress=False)


def test_tasks_and_metrics_that_cannot_be_evaluated():
    with pytest.raises(InputError, match="no eligible feature"):
        evaluate(linear(eligible=torch.zeros(2, 4, dtype=torch.bool)), [given(EFFECTS)], progress=False)
    with pytest.raises(InputError, match="unknown metrics"):
        evaluate(linear(), [given(EFFECTS)], ["nonsense"], progress=False)
    with pytest.raises(InputError, match="no method"):
        evaluate(linear(), [], progress=False)
    with pytest.raises(InputError, match="number of samples"):
        Task("t", Linear(), {"x": torch.zeros(0, 1, 1, 4)}, torch.zeros(0), Patches(1))
    with pytest.raises(InputError, match="relevance is"):
        perturbation(linear(), whole(linear()), torch.zeros(2, 5))


def test_targets_at_positions_follow_their_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    ids = torch.randint(0, 9, (3, 5))
    target = (torch.tensor([0, 2, 4]), torch.tensor([1, 2, 3]))
    task = Task("positions", model, {"input": ids}, target, Tokens(0, "input"))
    expected = model(ids)[torch.arange(3), target[0], target[1]]
    assert torch.allclose(Scene(task, whole(task)).value, expected.detach(), atol=1e-12)
    effects = leave_one_out(task, whole(task))
    assert [int(row.ne(0).sum()) for row in effects] == [int(ids[i, p] != 0) for i, p in enumerate([0, 2, 4])]
    last = task.batch(slice(2, 3))
    assert isinstance(last, Batch) and isinstance(perturbation(task, last, effects[2:]), Curves)


def test_methods_are_compared_on_the_samples_they_share():
    better = given(EFFECTS, "better")
    worse = Method("worse", given(-EFFECTS).prepare, limit=1)
    found = evaluate(linear(), [better, worse], ["abpc"], steps=4, batch=2, progress=False)
    row = found.against("better").loc[("linear", "worse")]
    assert row["mean"] == pytest.approx(-2 * (4 + 5.5 + 4) / 4, abs=1e-12) and row["samples"] == 1


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = tf.BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(WORDS)
    )
    tf.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


def test_command_line_evaluates_texts(saved, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a good film\n\na bad bad film\n")
    options = [
        "--methods",
        "attnlrp,random,grad_cam",
        "--csv",
        str(tmp_path / "out"),
        "--plot",
        str(tmp_path / "plot.png"),
    ]
    result = CliRunner().invoke(app, ["eval", str(saved), str(file), "--text", "good", *options])
    assert result.exit_code == 0, result.output
    assert "3 texts" in result.output and all(m in result.output for m in ("attnlrp", "random", "grad_cam", "ABPC"))
    values = pd.read_csv(tmp_path / "out" / "values.csv")
    assert sorted(values["method"].unique()) == ["attnlrp", "random"] and values["sample"].max() == 2
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_command_line_tunes_on_some_texts_and_compares_on_others(saved, tmp_path):
    file, rules = tmp_path / "texts.txt", tmp_path / "tuned.toml"
    file.write_text("a good film\n\na bad bad film\ngood\na good film\n")
    result = CliRunner().invoke(
        app, ["tune", str(saved), str(file), str(rules), "--trials", "1", "--depths", "1", "--base", "default"]
    )
    said = " ".join(result.output.split())
    assert result.exit_code == 0, said
    assert "rule sets on 2 texts: abpc" in said and "on the other 1 (" in said and "default-tuned" in said
    assert lrp_fx.RuleSet.load(rules).name == "default-tuned"
    for where, message in (("tuned.json", "ends in .toml"), ("none/tuned.toml", "no such folder")):
        result = CliRunner().invoke(app, ["tune", str(saved), str(file), str(tmp_path / where)])
        assert result.exit_code == 1 and message in " ".join(result.output.split())
    file.write_text("a good film\ngood\n")
    result = CliRunner().invoke(app, ["tune", str(saved), str(file), str(rules)])
    assert result.exit_code == 1 and "2 texts cannot be parted" in " ".join(result.output.split())


def test_command_line_says_what_is_missing(saved):
    assert "nothing to evaluate on" in CliRunner().invoke(app, ["eval", str(saved)]).output
    assert (
        "no rule set" in CliRunner().invoke(app, ["eval", str(saved), "--text", "film", "--methods", "nonsense"]).output
    )


def test_texts_become_a_task(saved):
    model = tf.AutoModelForSequenceClassification.from_pretrained(saved).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(saved)
    task = text_task("tiny", model, tokenizer, ["a good film", "[MASK] bad"])
    assert task.eligible.tolist() == [[True, True, True], [False, True, False]]  # neither special tokens nor padding
    assert task.features.replacement == WORDS.index("[MASK]")
    with torch.no_grad():
        assert torch.equal(task.target, model(**task.inputs).logits.argmax(-1))
    assert text_task("tiny", model, tokenizer, ["film"], target=1).target.tolist() == [1]
    with pytest.raises(InputError, match="text 2 has special tokens only"):
        text_task("tiny", model, tokenizer, ["film", "[MASK]"])


def test_padding_that_a_batch_shares_is_cut_off():
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "start": torch.zeros(2, 1)}
    task = Task("padded", Linear(), inputs, torch.zeros(2), Tokens(9, mask="attention_mask"), annotated=ids == 2)
    batches = list(task.batches(1))
    assert [b.inputs["input_ids"].tolist() for b in batches] == [[[1, 2]], [[3, 4, 5]]]
    assert [b.eligible.shape for b in batches] == [(1, 2), (1, 3)] and batches[0].annotated.tolist() == [[False, True]]
    assert task.batch(slice(None)).inputs["attention_mask"].shape == (2, 3)
    assert batches[0].inputs["start"].shape == (1, 1)
