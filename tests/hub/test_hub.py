"""Models saved with their rules, and model cards."""

import json

import pytest
import torch
from saved_words import model, tokenizer
from torch import nn

import lrp_fx
from lrp_fx import hub, testing
from lrp_fx.errors import InputError

RULES = {"name": "mine", "base": "attnlrp", "overrides": {"bert.encoder.*": {"dense": {"rule": "gamma", "gamma": 0.1}}}}


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
