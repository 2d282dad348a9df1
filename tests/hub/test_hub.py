"""Models saved with their rules, and model cards."""

import dataclasses
import json
import shutil
import zipfile

import huggingface_hub as hf
import pytest
import torch
import yaml
from torch import nn
from words import model, tokenizer

import lrp_fx
from lrp_fx import hub, testing
from lrp_fx.errors import InputError

RULES = {"name": "mine", "base": "attnlrp", "overrides": {"bert.encoder.*": {"dense": {"rule": "gamma", "gamma": 0.1}}}}


@pytest.mark.slow
def test_a_model_is_loaded_with_the_rules_and_the_tokenizer_that_it_was_saved_with(tmp_path):
    xmodel = lrp_fx.convert(model(), tokenizer=tokenizer(), rules=RULES, detach="see-through")
    check = testing.check(xmodel.model, **xmodel.encoder.texts.encode("w1 w2").inputs, rules=xmodel.ruleset)
    assert xmodel.save_pretrained(tmp_path, check=check) == tmp_path
    again = lrp_fx.from_pretrained(tmp_path)
    assert again.ruleset == xmodel.ruleset and again.captures.options == xmodel.captures.options
    one, other = xmodel.explain("w1 w2 w3"), again.explain("w1 w2 w3")
    assert torch.equal(one.relevance["input_ids"], other.relevance["input_ids"]) and other.ruleset == "mine"
    assert one.tokens() == other.tokens()
    document = json.loads((tmp_path / "explain.json").read_text())
    assert document["check"]["passed"] and document["versions"]["lrp_fx"] == lrp_fx.__version__
    changed = lrp_fx.from_pretrained(tmp_path, rules="cp_lrp", dtype=torch.float64, detach="honour")
    assert changed.ruleset.name == "cp_lrp" and changed.explain("w1").target.dtype is torch.float64
    assert changed.captures.options.detach == "honour"


@pytest.mark.slow
def test_a_folder_with_a_graph_is_pushed_and_its_weights_are_in_it_once(tmp_path, monkeypatch):
    xmodel = lrp_fx.convert(model(), tokenizer=tokenizer(), rules="attnlrp")
    expected = xmodel.explain("w1 w2 w3", target=1)
    asked = []

    class Api:
        """What huggingface_hub would do with the files."""

        def __init__(self, token=None):
            asked.append(("login", token))

        def create_repo(self, repo_id, private, exist_ok):
            asked.append(("create", repo_id, private, exist_ok))
            return hf.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, commit_message):
            asked.append(("upload", repo_id, commit_message))
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(hf, "HfApi", Api)
    address = xmodel.push_to_hub("me/words", private=True, token="secret", graph={"target": 1})
    assert address == "https://huggingface.co/me/words/commit/1"
    upload = ("upload", "me/words", "Model with its rule set")
    assert asked == [("login", "secret"), ("create", "me/words", True, True), upload]
    folder = tmp_path / "me/words"
    names = {"config.json", "model.safetensors", "tokenizer.json", "explain.json", "explain.pt2"}
    assert names <= {path.name for path in folder.iterdir()}
    loaded = lrp_fx.from_pretrained(folder).explain("w1 w2 w3", target=1)  # weights in mapped memory: other kernels
    torch.testing.assert_close(loaded.target, expected.target)
    graph = lrp_fx.load(folder / "explain.pt2", weights=folder)
    inputs = tokenizer()("w1 w2 w3", return_tensors="pt")
    torch.testing.assert_close(graph(**inputs, target=1).relevance["input_ids"], expected.relevance["input_ids"])
    with zipfile.ZipFile(folder / "explain.pt2") as archive:
        stored = [entry.file_size for entry in archive.infolist() if "/weights/weight_" in entry.filename]
    assert sum(stored) < 0.1 * (folder / "model.safetensors").stat().st_size


def test_any_saved_model_is_loaded_and_what_is_wrong_is_said(tmp_path):
    with pytest.raises(InputError, match="no model in"):
        lrp_fx.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer or processor"):
        lrp_fx.from_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert lrp_fx.from_pretrained(tmp_path).ruleset.name == "default"
    (tmp_path / "explain.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="of schema 99"):
        lrp_fx.from_pretrained(tmp_path)
    (tmp_path / "explain.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        lrp_fx.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="Linear has no save_pretrained"):
        lrp_fx.convert(nn.Linear(2, 2)).save_pretrained(tmp_path)


def test_a_section_of_a_model_card():
    check = testing.check(nn.Linear(4, 3), torch.randn(2, 4))
    page = hub.card_section(check, {"default": {"deletion": 0.5, "pointing": 1.0}, "attnlrp": {"deletion": 0.25}})
    assert page.startswith("## Explanations") and "### Linear: passed" in page and "lrp_fx.from_pretrained" in page
    assert page.endswith(
        "| rules | deletion | pointing |\n|---|---|---|\n| default | 0.5 | 1 |\n| attnlrp | 0.25 |  |\n"
    )


def test_evaluation_entries_are_what_the_hub_reads_back():
    check = testing.check(nn.Linear(4, 3), torch.randn(2, 4))
    results = {"default": {"deletion": 0.5, "pointing": 1.0}, "attnlrp": {"deletion": 0.25}}
    data = hf.ModelCardData(
        model_name="words", eval_results=hub.eval_results(results, task="text-classification", dataset="owner/words")
    )
    again = hf.ModelCardData(**yaml.safe_load(data.to_yaml()))
    assert again.eval_results == data.eval_results and len(again.eval_results) == 3
    read = {(r.metric_args["rules"], r.metric_type): r.metric_value for r in again.eval_results}
    assert read["default", "pointing"] == 1.0 and read["attnlrp", "deletion"] == 0.25
    entries = hub.eval_entries(results, dataset="owner/words", check=check, date="2026-11-26")
    assert hf.parse_eval_result_entries(yaml.safe_load(yaml.dump(entries)))[2].value == 0.25
    assert entries[0]["dataset"] == {"id": "owner/words", "task_id": "deletion"}
    assert entries[0]["notes"].endswith("rules default; explanations checked")
    failed = dataclasses.replace(check, failures=(testing.Failure("outputs", "outputs differ"),))
    with pytest.raises(InputError, match="explanations of Linear do not hold: outputs"):
        hub.eval_entries(results, dataset="owner/words", check=failed)


HUBCONF = """
dependencies = ["torch", "lrp_fx"]
import torch
from lrp_fx import hub

def small_net(classes=3):
    "A small net."
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.ReLU(), torch.nn.Linear(8, classes))

small_net_explained = hub.explainable(small_net, rules="attnlrp")
"""


def test_an_entry_point_of_torch_hub(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    model = torch.hub.load(tmp_path, "small_net", source="local", classes=5).eval()
    xmodel = torch.hub.load(tmp_path, "small_net_explained", source="local", classes=5)
    x = torch.randn(2, 4)
    found, expected = xmodel.explain(x, target=4), lrp_fx.convert(model, rules="attnlrp").explain(x, target=4)
    assert torch.equal(found.relevance["input"], expected.relevance["input"]) and found.ruleset == "attnlrp"
    other = torch.hub.load(tmp_path, "small_net_explained", source="local", explain_rules="cp_lrp")
    assert other.ruleset.name == "cp_lrp"
