"""Tokens to words, sentences, spans; samples, features, layers: whatever is summed, totals stay."""

import pandas as pd
import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, LatentError
from lrp_fx.results import Attribution, Context, Generation, Tokens, no_ledger
from lrp_fx.results.words import find_groups, merged


def tokenized(text, pieces, special=(), padding=0):
    """Tokens of a text at the places of its pieces; special ones before it, padding behind."""
    offsets, at = [], 0
    for piece in pieces:
        at = text.index(piece, at)
        offsets.append((at, at + len(piece)))
        at += len(piece)
    texts = (*special, *pieces, *["[PAD]"] * padding)
    n = len(pieces)
    return Tokens(
        texts,
        (*[True] * len(special), *[False] * n, *[True] * padding),
        (*[False] * (len(special) + n), *[True] * padding),
        (*[(0, 0)] * len(special), *offsets, *[(0, 0)] * padding),
        None,
        text,
    )


FIRST = tokenized("Unbelievable film. It won!", ["Un", "bel", "ievable", "film", ".", "It", "won", "!"], ("[CLS]",))
SECOND = tokenized("A dull one", ["A", "dull", "one"], ("[CLS]",), padding=5)


def result(values=None, **more):
    torch.manual_seed(0)
    values = torch.randn(2, 9, dtype=torch.float64) if values is None else values
    context = Context(tokens={"ids": (FIRST, SECOND)}, answers=("good", "bad"))
    return Attribution(
        relevance={"ids": values, "x": torch.randn(2, 3).double() * 1e-3},
        latents={"layers.0.mlp": torch.randn(2, 9, 4).double(), "layers.1.mlp": torch.randn(2, 9, 4).double()},
        target=torch.tensor([3.0, -1.0]), ruleset="attnlrp", context=context, _account=no_ledger("made up"), **more,
    )  # fmt: skip


def close(a, b):
    assert float((a - b).abs().max()) < 1e-12


def test_pieces_join_to_words():
    assert find_groups(FIRST, "words") == [[0], [1, 2, 3], [4, 5], [6], [7, 8]]
    assert merged(FIRST, find_groups(FIRST, "words")).texts == ("[CLS]", "Unbelievable", "film.", "It", "won!")
    assert find_groups(SECOND, "words") == [[0], [1], [2], [3]]  # padding is in none


def test_pieces_that_hold_their_space_begin_words():
    """Byte-level tokenizers number a whole sentence as one word and keep spaces inside their pieces."""
    offsets = ((0, 2), (2, 6), (6, 11), (11, 16), (16, 21))
    texts = ("an", " unb", "eliev", " able", " film")
    tokens = Tokens(texts, (False,) * 5, (False,) * 5, offsets, (0,) * 5, "an unbeliev able film")
    assert merged(tokens, find_groups(tokens, "words")).texts == ("an", "unbeliev", "able", "film")


def test_word_numbers_of_a_tokenizer_divide_too():
    tokens = Tokens(
        ("un", "believable", "film"),
        (False,) * 3,
        (False,) * 3,
        ((0, 2), (2, 12), (12, 16)),
        (0, 0, 1),
        "unbelievablefilm",
    )
    assert find_groups(tokens, "words") == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((" an", " unbel", "iev", "able", " film"), ("an", "unbelievable", "film")),
        (("an", "unbel", "##iev", "##able", "film"), ("an", "unbelievable", "film")),
        (("7", "12", "7"), ("7", "12", "7")),
    ],
)
def test_without_a_text_pieces_say_where_words_begin(pieces, words):
    tokens = Tokens.plain(pieces)
    assert merged(tokens, find_groups(tokens, "words")).texts == words


def test_sentences_end_at_their_signs_and_at_lines():
    assert merged(FIRST, find_groups(FIRST, "sentences")).texts == ("[CLS]", "Unbelievable film.", "It won!")
    lines = tokenized("no sign\nhere", ["no", "sign", "here"])
    assert find_groups(lines, "sentences") == [[0, 1], [2]]


@pytest.mark.parametrize(
    "by",
    ["words", "sentences", [(1, 4), (4, 9)], lambda tokens: [t.lower() in "aeiou" or None for t in tokens.texts],
     lambda tokens: [i % 2 for i in range(len(tokens))]],
)  # fmt: skip
def test_totals_stay(by):
    whole = result()
    joined = whole.merge(by)
    assert torch.equal(joined.target, whole.target)
    close(joined.total, whole.total)
    close(joined.latents["layers.0.mlp"].sum((1, 2)), whole.latents["layers.0.mlp"].sum((1, 2)))
    assert joined.latents["layers.0.mlp"].shape[:2] == joined.relevance["ids"].shape
    assert torch.equal(joined.relevance["x"], whole.relevance["x"]) and "ids" not in joined.inputs
    close(joined[1].total, whole[1].total)  # padding had relevance, too
    assert len(joined.tokens("ids")[0]) == joined.relevance["ids"].shape[1]


def test_a_word_has_what_its_pieces_have():
    whole = result()
    joined = whole.merge("words")
    assert joined.tokens("ids")[0].texts[:2] == ("[CLS]", "Unbelievable")
    close(joined.relevance["ids"][0, 1], whole.relevance["ids"][0, 1:4].sum())
    close(joined.relevance["ids"][1, :4], whole.relevance["ids"][1, :4])
    assert joined.tokens("ids")[1].padding == (False,) * 4 + (True,) * 2


def test_words_of_a_group_keep_their_spaces():
    """Also where they are not beside each other, and special tokens among them."""
    words = {0: "first", 1: "first", 2: "first", 3: "first", 6: "second", 4: "second"}
    names = lambda tokens: [words.get(i, "rest") for i in range(len(tokens))]
    texts = merged(FIRST, find_groups(FIRST, names)).texts
    assert texts == ("[CLS] Unbelievable", "film It", ". won!")
    pieces = Tokens.plain(["a", "un", "##be", "##lievable", "film"])
    assert merged(pieces, [[0, 4], [1, 2, 3]]).texts == ("a film", "unbelievable")
    assert merged(Tokens.plain([" a", " fi", "lm", " was"]), [[0, 1, 2], [3]]).texts == ("a film", "was")


@pytest.mark.parametrize(
    ("by", "message"),
    [("letters", "choose one of words, sentences"), ([(0, 2), (1, 3)], "overlaps"), ([(2, 2)], "0 <= start < end"),
     ([(0, 20)], "0 <= start < end"), (lambda tokens: [0], "1 group names for 9 tokens")],
)  # fmt: skip
def test_groups_that_do_not_fit_are_refused(by, message):
    with pytest.raises(InputError, match=message):
        result().merge(by)


def test_samples_features_and_layers_are_summed():
    whole = result()
    one = whole.aggregate("samples")
    close(one.total, whole.total.sum())
    assert len(one) == 1 and float(one.target) == 2.0
    flat = whole.aggregate("features")
    assert flat.latents["layers.0.mlp"].shape == (2, 9) and flat.relevance["x"].shape == (2, 3)
    layers = whole.aggregate("layers").latents
    assert list(layers) == ["layers.*.mlp"]
    close(layers["layers.*.mlp"], whole.latents["layers.0.mlp"] + whole.latents["layers.1.mlp"])
    with pytest.raises(InputError, match="choose"):
        whole.aggregate("heads")


def test_a_real_ledger_stays_with_all_sums():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    whole = lrp_fx.convert(model).explain(torch.arange(8).reshape(2, 4), target=1)
    for summed in (whole.merge([(0, 2)]), whole.aggregate("samples"), whole.merge([(0, 2)]).aggregate("samples")):
        assert abs(summed.ledger["input"] - whole.ledger["input"]) < 1e-12 and summed.ledger.balance < 1e-12
        close(summed.total.sum(), whole.total.sum())
    assert abs(whole.merge([(1, 3)])[1].ledger["input"] - float(whole[1].total)) < 1e-12
    frame = whole.to_dataframe("category")
    assert set(frame["sample"]) == {0, 1} and abs(frame["amount"].sum() - float(whole.target.sum())) < 1e-12


def test_top_ranks_by_magnitude_and_sign():
    values = torch.zeros(2, 9)
    values[0] = torch.tensor([9.0, 1, 1, -4, 0.5, 0, 3, -1, 0])
    found = result(values).top(2, "both")
    first = [(s.text, s.relevance) for s in found if s.sample == 0 and s.input == "ids"]
    assert first == [("It", 3.0), ("Unbelievable", -2.0)]  # [CLS] is none of the text
    assert [s.text for s in result(values).top(1, 1, special=True) if s.sample == 0] == ["[CLS]"]
    assert [s.text for s in result(values)[0].top(9, "negative", by="token") if s.input == "ids"] == ["ievable", "won"]
    with pytest.raises(InputError, match="positive"):
        result().top(2, "up")


def test_tables():
    whole = result()
    tokens = whole.to_dataframe()
    assert list(tokens.columns) == ["sample", "input", "position", "text", "relevance", "answer"]
    assert abs(tokens["relevance"].sum() - float(whole.total.sum())) < 1e-12
    words = whole.to_dataframe("word")
    assert "Unbelievable" in set(words["text"]) and abs(words["relevance"].sum() - tokens["relevance"].sum()) < 1e-12
    assert isinstance(words, pd.DataFrame) and set(words[words["input"] == "x"]["text"]) == {"x[0]", "x[1]", "x[2]"}
    layers = whole.to_dataframe("layer")
    assert (
        len(layers) == 4 and abs(layers["relevance"].sum() - sum(float(v.sum()) for v in whole.latents.values())) < 1e-9
    )
    with pytest.raises(LatentError, match="made up"):
        whole.to_dataframe("category")
    with pytest.raises(InputError, match="no latents"):
        whole.aggregate("samples")._derived(latents={}).to_dataframe("layer")
    with pytest.raises(InputError, match="choose"):
        whole.to_dataframe("sentence")


def test_a_generated_text_is_merged_on_both_sides():
    tokens = (Tokens.plain([" a", " fi", "lm", " was", "n", " bad"]),) * 2
    torch.manual_seed(0)
    made = Generation(
        sequences=torch.arange(12).reshape(2, 6), start=3, relevance={"input_ids": torch.randn(2, 3, 6).double()},
        latents={}, target=torch.randn(2, 3).double(), ruleset="attnlrp", context=Context(tokens={"input_ids": tokens}),
    )  # fmt: skip
    assert [t.texts for t in made.new_tokens()] == [(" was", "n", " bad")] * 2 and made.name_of(2) == " bad"
    joined = made.merge("words")
    assert joined.tokens("input_ids")[0].texts == ("a", "film", "wasn", "bad") and joined.start == 2
    assert joined.relevance["input_ids"].shape == (2, 2, 4) and joined.new_tokens()[0].texts == (
        "wasn",
        "bad",
    )
    r = made.relevance["input_ids"]
    close(joined.relevance["input_ids"][:, 0, 1], r[:, :2, 1:3].sum((1, 2)))
    close(joined.target.sum(1), made.target.sum(1))
    close(joined.total, made.total)
    close(joined.summed().relevance["input_ids"].sum(), r.sum())
    frame = joined[1].to_dataframe()
    assert set(frame["target"]) == {"wasn", "bad"} and abs(frame["relevance"].sum() - float(r[1].sum())) < 1e-12
