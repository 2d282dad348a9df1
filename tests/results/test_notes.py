"""Notes on weak maps: each sign is seen where it is there, and a good map has none."""

import re

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.results.notes import find_notes

GOOD = {"x": torch.tensor([[0.5, 0.4, -0.1]])}
TARGET = torch.tensor([0.9])

#: sign -> (relevance, explained values, ledger)
WEAK = {
    "nothing": ({"x": torch.zeros(1, 3)}, TARGET, None),
    "small share": ({"x": torch.tensor([[0.05, 0.01]])}, TARGET, None),
    "cancelling": ({"x": torch.tensor([[20.0, -19.1]])}, TARGET, None),
    "stabilised": (GOOD, TARGET, {"input": 0.8, "constant": 0.04, "stabiliser": 0.06}),
    "unbalanced": (GOOD, TARGET, {"input": 0.8, "constant": 2e12, "softmax": -4e12}),
    "no relevance": ({**GOOD, "y": torch.zeros(1, 3)}, TARGET, None),
}


@pytest.mark.parametrize("sign", WEAK)
def test_every_sign_is_seen_and_says_what_to_try(sign):
    (note,) = find_notes(*WEAK[sign])
    assert note.name == sign and ("Try" in str(note) or "verify" in str(note))


def test_inputs_of_the_opposite_sign_are_a_small_share():
    (note,) = find_notes({"x": torch.tensor([[-1.2]])}, torch.tensor([9.06]), None)
    assert note.name == "small share" and "opposite sign" in str(note)


@pytest.mark.parametrize(
    ("category", "name", "remedy"),
    [("softmax", "softmax", "cp_lrp"), ("constant", "constants", "Contrast"), ("bias", "biases", "Contrast")],
)
def test_with_a_ledger_the_note_on_a_small_share_says_what_holds_most(category, name, remedy):
    relevance, target, _ = WEAK["small share"]
    amounts = {"input": 0.06, "bias": 0.1, "constant": 0.1, "softmax": 0.1, category: 0.64}
    (note,) = find_notes(relevance, target, amounts)
    assert name in str(note) and "71%" in str(note) and remedy in str(note)


@pytest.mark.parametrize("sign", ["small share", "cancelling"])
def test_a_note_does_not_recommend_the_rule_set_in_use(sign):
    (note,) = find_notes(*WEAK[sign], ruleset="default")
    assert "rules=" in str(find_notes(*WEAK[sign], ruleset="attnlrp")[0]) and '"default"' not in str(note)


def test_a_good_map_has_no_note():
    amounts = {"input": 0.3, "bias": 0.06, "softmax": 0.34, "constant": 0.2}
    assert find_notes(GOOD, TARGET, amounts) == find_notes(GOOD, TARGET, None) == ()


def test_samples_are_judged_one_by_one():
    # explained values of opposite signs: their sum says nothing of either sample
    relevance = {"x": torch.tensor([[0.5, 0.4], [-0.5, -0.4], [0.01, 0.02], [40.0, -39.0]])}
    target = torch.tensor([0.95, -0.95, 1.0, 1.0])
    assert find_notes({"x": relevance["x"][:2]}, target[:2], None) == ()
    little, cancelling = find_notes(relevance, target, None)
    assert little.name == "small share" and "in 1 of 4 samples" in str(little) and "hold 3%" in str(little)
    assert cancelling.name == "cancelling" and "in 1 of 4 samples" in str(cancelling)


def test_an_input_that_all_samples_share_counts_in_each():
    assert find_notes({"x": torch.tensor([[0.1], [0.1]]), "table": torch.full((5,), 0.32)}, torch.ones(2), None) == ()


def test_explanations_carry_their_notes():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    layer.bias.data.fill_(50.0)  # all that the answer rests on
    attribution = lrp_fx.convert(layer).explain(torch.randn(4, 3), target=1)
    assert [note.name for note in attribution.notes] == ["small share"]
    assert "note: the inputs" in repr(attribution) and "Contrast" in repr(attribution)
    assert re.search(r"target=\[-?\d+\.?\d{0,4}(e[-+]\d+)?[,\]]", repr(attribution))  # not all digits of a float
    contrast = lrp_fx.convert(layer).explain(torch.randn(4, 3), target=lrp_fx.Contrast(1, 0))
    assert "small share" not in [note.name for note in contrast.notes]  # the advice helps


def test_notes_of_the_ledger_are_there_once_it_was_computed():
    torch.manual_seed(0)
    attribution = lrp_fx.convert(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))).explain(
        torch.randn(4, 3),
        target=1,
        rules={"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 10.0}}},
    )
    before = {note.name for note in attribution.notes}
    assert attribution.ledger.balance < 1e-6
    assert {note.name for note in attribution.notes} - before == {"stabilised"}
