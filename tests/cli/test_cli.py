"""The command line, on a tiny saved model."""

import json
import os
import re
import threading
from pathlib import Path

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


def test_explain_writes_what_is_asked_for(saved, tmp_path):
    import lrp_fx

    texts = tmp_path / "texts.txt"
    texts.write_text("a good film\n\nbad film\n")
    files = {
        kind: tmp_path / name for kind, name in (("--view", "v.html"), ("--save", "r.json.gz"), ("--html", "h.html"))
    }
    options = [part for kind, path in files.items() for part in (kind, str(path))]
    result = runner.invoke(
        app, ["explain", saved, "--file", str(texts), "--contrast", "--at", "bert.encoder.layer.0", "--json", *options]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [s["text"] for s in told["shares"] if s["sample"] == 0] == ["a", "good", "film"]
    assert told["asked"] == "contrast" and len(told["target"]) == len(told["answers"]) == 2
    assert sum(told["ledger"].values()) == pytest.approx(sum(told["target"]), rel=1e-3)
    assert all(path.stat().st_size for path in files.values())
    assert list(lrp_fx.load_result(files["--save"]).latents) == ["bert.encoder.layer.0"]
    piped = runner.invoke(app, ["explain", saved, "--file", "-", "--json"], input="a bad film\n")
    assert [s["text"] for s in json.loads(piped.stdout)["shares"]] == ["a", "bad", "film"]


def test_explain_a_text_that_is_generated(tmp_path, saved):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(VOCABULARY),
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path / "writer"
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(saved).save_pretrained(folder)
    file = tmp_path / "written.safetensors"
    result = runner.invoke(
        app,
        ["explain", str(folder), "a good", "--generate", "2", "--json", "--at", "model.layers.0", "--save", str(file)],
    )
    assert result.exit_code == 0, result.output
    import lrp_fx

    assert lrp_fx.load_result(file).latents["model.layers.0"].shape[:3] == (1, 2, 4)
    told = json.loads(result.stdout)
    assert len(told["target"][0]) == 2 and told["ledger"] is None


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("seeing") / "vit"
    config = tf.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    tf.ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def test_explain_an_image_in_a_file(seeing, tmp_path):
    from PIL import Image

    Image.new("RGB", (10, 10), (200, 30, 60)).save(tmp_path / "red.png")
    result = runner.invoke(app, ["explain", str(seeing), "--image", str(tmp_path / "red.png"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answers"][0] in ("cat", "dog")
    missing = runner.invoke(app, ["explain", str(seeing), "--image", str(tmp_path / "none.png")])
    assert missing.exit_code == 1 and "cannot be read as an image" in " ".join(missing.output.split())
    named = runner.invoke(app, ["explain", str(seeing), str(tmp_path / "red.png"), "--json"])
    assert named.output == result.output
    result = runner.invoke(app, ["explain", str(seeing), "a text"])
    assert result.exit_code == 1 and "'a text' cannot be read as an image" in " ".join(result.output.split())
    result = runner.invoke(app, ["explain", str(seeing)])
    assert result.exit_code == 1 and "give the path of an image" in " ".join(result.output.split())


def test_report_draws_every_node(saved, tmp_path):
    result = runner.invoke(app, ["report", saved, "--html", str(tmp_path / "graph.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "graph.html").read_text()
    assert (
        "bert.encoder.layer.0.attention" in page
        and '"role":"normalization"' in page
        and "under the rules default" in page
    )


def test_bench_and_ops(saved):
    result = runner.invoke(app, ["bench", saved, "a good film", "--repeat", "1", "--rules", "attnlrp,gradient"])
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("forward and gradient", "explain, attnlrp", "explain, gradient"))
    result = runner.invoke(app, ["ops", "aten.*softmax*"])
    assert result.exit_code == 0 and "aten._softmax" in result.output and "aten.add" not in result.output
    assert runner.invoke(app, ["ops", "nonsense.*"]).exit_code == 1


@pytest.mark.slow
def test_export_writes_a_graph_that_explains(saved, tmp_path):
    import lrp_fx

    result = runner.invoke(app, ["export", saved, str(tmp_path / "graph.pt2"), "a good film", "--precision", "float64"])
    assert result.exit_code == 0, result.output
    tokens = tf.AutoTokenizer.from_pretrained(saved)("a bad film", return_tensors="pt")
    model = tf.BertForSequenceClassification.from_pretrained(saved).double().eval()
    expected = lrp_fx.convert(model).explain(**tokens)
    found = lrp_fx.load(tmp_path / "graph.pt2")(**tokens)
    assert float((found.relevance["input_ids"] - expected.relevance["input_ids"]).abs().max()) < 1e-9


def test_version_and_completion():
    import lrp_fx

    assert runner.invoke(app, ["--version"]).output.strip() == f"lrp_fx {lrp_fx.__version__}"
    root = Path(__file__).parents[2]
    headings = re.findall(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.M)
    assert next(h for h in headings if h != "Unreleased") == lrp_fx.__version__
    assert not re.search(r"^version:", (root / "CITATION.cff").read_text(), re.M)  # else it has to be this one, too
    assert "--install-completion" in runner.invoke(app, ["--help"]).output


def _interrupt(*_):
    """As Ctrl-C does, also where the signal itself is ignored (commands in the background)."""
    raise KeyboardInterrupt


def test_exit_codes_are_those_of_the_page(saved, monkeypatch, tmp_path):
    from lrp_fx.cli.exits import EXITS

    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    rows = {int(code): when.strip() for code, when in re.findall(r"^\| (\d+) \| (.*?) \|$", page, re.M)}
    assert rows == EXITS
    assert runner.invoke(app, ["rules"]).exit_code == 0
    assert runner.invoke(app, ["ops", "nonsense.*"]).exit_code == 1
    assert runner.invoke(app, ["explain"]).exit_code == 2
    assert runner.invoke(
        app, ["verify", saved, "a film", "--rules", "vit_gamma", "--precision", "bfloat16"]
    ).exit_code in (0, 3)
    with monkeypatch.context() as patch:
        patch.setattr("lrp_fx.results.result.page", _interrupt)
        interrupted = runner.invoke(app, ["explain", saved, "a film", "--html", str(tmp_path / "page.html")])
    assert interrupted.exit_code == 130 and not list(tmp_path.iterdir())
    monkeypatch.setenv("LRP_FX_MODELS", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = runner.invoke(app, ["explain", "prompt", "a text"])
    assert missing.exit_code == 4 and "pip install" in " ".join(missing.output.split())
    assert all(
        f"lrp-fx {name}" in page
        for name in ("explain", "view", "report", "verify", "bench", "export", "eval", "tune", "run", "rules", "ops")
    )


def test_explain_a_target_by_its_name(saved):
    result = runner.invoke(app, ["explain", saved, "a bad film", "--target", "contrast"])
    assert result.exit_code == 0, result.output
    assert "rather than all others" in " ".join(result.output.split())
    numbered = runner.invoke(app, ["verify", saved, "a bad film", "--target", "-1"])
    assert numbered.exit_code == 0 and "passed" in numbered.output


def test_report_and_verify(saved):
    result = runner.invoke(app, ["report", saved])
    assert result.exit_code == 0 and "normalization" in result.output and "input sizes" in result.output
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
        (["explain", "somebody/a-model", "text"], "HF_HUB_OFFLINE is set"),
        (["explain", "{saved}/none.gguf", "text"], "a GGUF file, the id of a model on the Hub"),
        (["explain", "{saved}", "a film", "--rules", "nonsense"], "no rule set 'nonsense'"),
        (["explain", "{saved}", "a film", "--target", "9"], "target 9 is out of range"),
        (["explain", "{saved}", "a film", "--target", "contarst"], "did you mean 'contrast'"),
        (["explain", "{saved}"], "there is nothing to explain"),
        (["explain", "{saved}", " "], "there is nothing to explain"),
        (["report", "{saved}", ""], "there is nothing to explain"),
        (["explain", "{saved}", "--file", "."], "there is no file '.'"),
        (
            ["explain", "{saved}", "--file", "{saved}/none.txt"],
            "give one with a text per line, or - for standard input",
        ),
        (["explain", "{saved}", "a film", "--precision", "int8"], "unknown precision 'int8'"),
    ],
)
def test_errors_are_one_message(saved, arguments, message):
    result = runner.invoke(app, [a.format(saved=saved) for a in arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_files_that_cannot_be_read_are_named(saved, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe a good film")
    (tmp_path / "broken.toml").write_text("dense = = 3")
    (tmp_path / "marked.txt").write_bytes("a film".encode("utf-8-sig"))
    binary = str(tmp_path / "bytes.txt")
    for arguments, said in (
        (["explain", saved, "--file", binary], "is no text in UTF-8"),
        (["eval", saved, binary], "is no text in UTF-8"),
        (["explain", saved, "a film", "--rules", str(tmp_path / "broken.toml")], "is no TOML file: Invalid value"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 1 and said in " ".join(result.output.split())
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=("a film\r\n\r\na good film\r\n",)).start()
    piped = runner.invoke(app, ["explain", saved, "--file", str(tmp_path / "pipe"), "--json"])
    assert [share["text"] for share in json.loads(piped.stdout)["shares"]] == ["a", "film", "a", "good", "film"]
    marked = runner.invoke(app, ["explain", saved, "--file", str(tmp_path / "marked.txt"), "--json"])
    assert [share["text"] for share in json.loads(marked.stdout)["shares"]] == ["a", "film"]


def test_demo_head_is_data():
    from importlib.resources import files

    head = json.loads(files("lrp_fx.cli").joinpath("sentiment_head.json").read_text())
    assert len(head["weight"]) == 2 and len(head["weight"][0]) == 384 and len(head["bias"]) == 2
