"""The command line, on a tiny saved model."""

import json

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from lrp_fx.cli.main import app

runner = CliRunner()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = tf.BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(VOCABULARY),
        id2label={0: "boring", 1: "gripping"},
    )  # fmt: skip
    tf.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return str(folder)


def test_explain_prints_words_label_and_ledger(saved, tmp_path):
    page = tmp_path / "heatmap.html"
    result = runner.invoke(app, ["explain", saved, "a good film", "--html", str(page), "--precision", "float64"])
    assert result.exit_code == 0, result.output
    assert "good" in result.output and ("boring" in result.output or "gripping" in result.output)
    assert "explained value" in result.output and "softmax" in result.output
    assert "good" in page.read_text()


def test_explain_a_named_class_under_another_rule_set(saved):
    result = runner.invoke(app, ["explain", saved, "a bad film", "--target", "1", "--rules", "cp_lrp", "--pieces"])
    assert result.exit_code == 0, result.output
    assert "gripping" in result.output and "softmax" not in result.output


def test_view_writes_a_page_of_saved_results(tmp_path):
    import lrp_fx

    result = lrp_fx.convert(torch.nn.Linear(3, 2)).explain(torch.randn(1, 3))
    files = [str(result.save(tmp_path / name)) for name in ("before.json.gz", "after.safetensors")]
    shown = runner.invoke(app, ["view", *files, "-o", str(tmp_path / "both.html"), "--title", "An edit"])
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "both.html").read_text()
    assert '"name":"before"' in page and '"name":"after"' in page and "<title>An edit</title>" in page
    shown = runner.invoke(app, ["view", str(tmp_path / "none.json.gz")])
    assert shown.exit_code == 1 and "no such file" in shown.output


def test_explain_a_target_by_its_name(saved):
    result = runner.invoke(app, ["explain", saved, "a bad film", "--target", "contrast"])
    assert result.exit_code == 0, result.output
    assert "rather than all others" in " ".join(result.output.split())
    numbered = runner.invoke(app, ["verify", saved, "a bad film", "--target", "-1"])
    assert numbered.exit_code == 0 and "passed" in numbered.output


def test_report_and_verify(saved):
    result = runner.invoke(app, ["report", saved])
    assert result.exit_code == 0 and "normalization" in result.output and "0 unknown" in result.output
    result = runner.invoke(app, ["verify", saved, "a good film"])
    assert result.exit_code == 0 and "passed" in result.output and "bit-equal" in result.output


def test_report_says_why_a_module_is_what_it_is(saved):
    result = runner.invoke(app, ["report", saved, "--why", "classifier"])
    assert result.exit_code == 0 and "layer with weights (contraction)" in result.output and "Not so: " in result.output
    result = runner.invoke(app, ["report", saved, "--why", "clasifier"])
    assert result.exit_code == 1 and "classifier" in result.output


def test_rules_lists_every_rule_set():
    output = runner.invoke(app, ["rules"]).output
    assert all(name in output for name in ("attnlrp", "cp_lrp", "gradient"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "no/such/model", "text"], "one of the demos: sentiment"),
        (["explain", "{saved}", "a film", "--rules", "nonsense"], "no rule set 'nonsense'"),
        (["explain", "{saved}", "a film", "--target", "9"], "target 9 is out of range"),
        (["explain", "{saved}", "a film", "--target", "contarst"], "did you mean 'contrast'"),
        (["explain", "{saved}"], "there is nothing to explain"),
        (["explain", "{saved}", "a film", "--precision", "int8"], "unknown precision 'int8'"),
    ],
)
def test_errors_are_one_message(saved, arguments, message):
    result = runner.invoke(app, [a.format(saved=saved) for a in arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_demo_head_is_data():
    from importlib.resources import files

    head = json.loads(files("lrp_fx.cli").joinpath("sentiment_head.json").read_text())
    assert len(head["weight"]) == 2 and len(head["weight"][0]) == 384 and len(head["bias"]) == 2
