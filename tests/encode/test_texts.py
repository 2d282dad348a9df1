"""Texts in: padding, truncation, special tokens, pairs, names of classes; a pipeline as it is."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lrp_fx
from lrp_fx.encode import InputEncoder, are_texts
from lrp_fx.errors import InputError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "un", "##be", "##lievable", "film", ".", "bad"]


def tokenizer(**options):
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **(names | options))


def classifier():
    torch.manual_seed(0)
    config = tf.BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(PIECES),
        max_position_embeddings=12, id2label={0: "boring", 1: "gripping"},
    )  # fmt: skip
    return tf.BertForSequenceClassification(config).double().eval()


@pytest.fixture(scope="module")
def xmodel():
    return lrp_fx.convert(classifier(), tokenizer=tokenizer())


def close(a, b):
    assert a.shape == b.shape and float((a - b).abs().max()) < 1e-12


TEXT = "a unbelievable film."


def test_a_text_is_explained_as_its_tensors_are(xmodel):
    found = xmodel.explain(TEXT)
    encoding = tokenizer()(TEXT, return_tensors="pt")
    close(found.relevance["input_ids"], xmodel.explain(**encoding).relevance["input_ids"])
    assert found.tokens()[0].texts == ("[CLS]", "a", "un", "be", "lievable", "film", ".", "[SEP]")
    assert found.merge("words").tokens()[0].texts == ("[CLS]", "a", "unbelievable", "film", ".", "[SEP]")
    assert found.merge("words").merge("words").tokens()[0].texts == found.merge("words").tokens()[0].texts
    label = ["boring", "gripping"][int(found.output.logits.argmax())]
    assert found.context.answers == (label,) and found.context.labels == ("boring", "gripping")
    assert {s.text for s in found.top(9)} == {"a", "unbelievable", "film", "."}
    assert found.ledger.balance < 1e-10 and not found.context.notes


def test_numbers_of_segments_are_no_words(xmodel):
    ids = tokenizer()("a good film", return_tensors="pt")["input_ids"]
    found = xmodel.explain(input_ids=ids, token_type_ids=torch.ones_like(ids))
    assert found.tokens("input_ids")[0].texts == ("[CLS]", "a", "good", "film", "[SEP]")
    assert found.tokens("token_type_ids")[0].texts == ("1",) * 5


def test_texts_of_other_lengths_are_padded_and_do_not_change(xmodel):
    texts = [TEXT, "bad", "a good film"]
    found = xmodel.explain(texts, target=1)
    assert len(found) == 3 and found.context.answers == ("gripping",) * 3
    for one, text in zip(found, texts, strict=True):
        alone = xmodel.explain(text, target=1)
        length = alone.relevance["input_ids"].shape[1]
        close(one.relevance["input_ids"][:, :length], alone.relevance["input_ids"])
        tokens = one.tokens()[0]
        assert tokens.texts[:length] == alone.tokens()[0].texts and all(tokens.padding[length:])
        assert [s.text for s in one.top(9, by="token")] == [s.text for s in alone.top(9, by="token")]


def test_pairs_know_both_texts(xmodel):
    found = xmodel.explain(("a good film", "a bad film"), target=0)
    tokens = found.tokens()[0]
    assert tokens.text == "a good film\na bad film"
    assert [tokens.text[slice(*o)] for o, s in zip(tokens.offsets, tokens.special, strict=True) if not s] == [
        "a",
        "good",
        "film",
        "a",
        "bad",
        "film",
    ]
    encoding = tokenizer()("a good film", "a bad film", return_tensors="pt")
    close(found.relevance["input_ids"], xmodel.explain(**encoding, target=0).relevance["input_ids"])
    assert found.merge("words").tokens()[0].texts == (
        "[CLS]",
        "a",
        "good",
        "film",
        "[SEP]",
        "a",
        "bad",
        "film",
        "[SEP]",
    )
    assert len(xmodel.explain([("a", "bad"), ("a good", "film")], target=0)) == 2


def test_what_is_cut_off_is_told(xmodel):
    with pytest.warns(UserWarning, match="text 1 has 22 tokens, and the model reads 12"):
        found = xmodel.explain(["a", "good " * 20], target=0)
    assert found.relevance["input_ids"].shape == (2, 12)
    assert [n.name for n in found.context.notes] == ["cut off"] and "note: text 1 has 22" in repr(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xmodel.explain("good " * 10, target=0)


def test_inputs_lie_where_the_weights_lie():
    half = lrp_fx.convert(vision().bfloat16(), image_processor=lambda image: torch.ones(3, 4, 4))
    assert half.explain(np.zeros((4, 4, 3), np.uint8)).inputs["input"].dtype is torch.bfloat16
    away = lrp_fx.convert(vision().to("meta"), image_processor=lambda image: torch.ones(3, 4, 4))
    assert away.encoded((np.zeros((4, 4, 3), np.uint8),), {})[1]["input"].device.type == "cpu"


def vision():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))


def test_names_of_what_is_explained(xmodel):
    assert xmodel.explain(TEXT, target=lrp_fx.Contrast(1, 0)).context.answers == ("gripping rather than boring",)
    assert xmodel.explain(TEXT, target=lrp_fx.Contrast(0)).context.answers == ("boring rather than all others",)
    assert xmodel.explain(["a", "bad"], target=torch.tensor([1, 0])).context.answers == ("gripping", "boring")
    assert xmodel.explain(TEXT, target=-1).context.answers == ("gripping",)
    (own,) = xmodel.explain(TEXT).context.answers
    said = {"logit": own, "contrast": f"{own} rather than all others", "log_prob": f"log-probability of {own}"}
    said["probability"] = f"probability of {own}"
    assert {name: xmodel.explain(TEXT, target=name).context.answers[0] for name in said} == said
    assert xmodel.explain(TEXT, target=lambda out: out.logits[:, 0]).context.answers is None
    named = lrp_fx.convert(classifier(), tokenizer=tokenizer(), labels=["dull", "great"])
    assert named.explain(TEXT, target=1).context.answers == ("great",)
    assert xmodel.explain(TEXT, targets=[0, 1])[0].tokens()[0].texts[1] == "a"


def test_ids_are_spelled_where_there_is_a_tokenizer(xmodel):
    ids = torch.tensor([[2, 4, 6, 7, 8, 3, 0]])
    found = xmodel.explain(input_ids=ids, attention_mask=(ids > 0).long(), target=0)
    assert found.tokens()[0].texts[:6] == ("[CLS]", "a", "un", "##be", "##lievable", "[SEP]")
    assert found.tokens()[0].padding == (False,) * 6 + (True,)
    assert found.merge("words").tokens()[0].texts[:4] == ("[CLS]", "a", "unbelievable", "[SEP]")


def test_other_ways_in(xmodel):
    assert xmodel.verify(TEXT).passed
    assert len(xmodel.explain_conditions(TEXT, conditions=[{}, {}], target=0)) == 2
    example = lrp_fx.convert(classifier(), TEXT, tokenizer=tokenizer())
    assert len(example.captures) == 1
    assert xmodel.explain(TEXT, target=0, attention_mask=torch.ones(1, 8).long()).relevance["input_ids"].shape == (1, 8)


def test_a_pipeline_in_three_lines():
    pipe = tf.pipeline("text-classification", model=classifier().float(), tokenizer=tokenizer())
    xmodel = lrp_fx.convert(pipe)
    found = xmodel.explain(TEXT)
    assert found.context.answers == (pipe(TEXT)[0]["label"],)


def test_errors_say_what_to_do(xmodel):
    with pytest.raises(InputError, match=r"convert\(model, tokenizer=...\)"):
        lrp_fx.convert(classifier()).explain(TEXT)
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(InputError, match="text 0 has no tokens"):
        lrp_fx.convert(classifier(), tokenizer=bare).explain("")
    with pytest.raises(TypeError, match=r"expects an nn\.Module"):
        lrp_fx.convert(SimpleNamespace(model=3))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the list of inputs is empty"), (None, "None is no input that can be encoded"), (b"good", "b'good' is no"),
        (np.zeros((5, 5, 3)), "an array of float64 and shape (5, 5, 3) is no"), (["good", None], "entry 1 of the list, None, is no input of the kind of the others"),
        (pd.Series(["good", "a"]), "0 good 1 a dtype: str is no input"), ("good \ud800 film", "is half a character. Remedy"), (["good", "\udfff"], "is half a character"),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_named(xmodel, value, said):
    with pytest.raises(InputError) as raised:
        xmodel.explain(value)
    assert said in str(raised.value)


def test_a_converted_model_is_copied_with_its_tokenizer(xmodel):
    import copy

    close(copy.deepcopy(xmodel).explain("bad", target=0).target, xmodel.explain("bad", target=0).target)


@pytest.mark.slow
def test_a_decoder_goes_on_from_texts():
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(PIECES),
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).double().eval()
    xmodel = lrp_fx.convert(model, tokenizer=tokenizer())
    found = xmodel.explain_generation(["a good film", "bad"], max_new_tokens=3)
    assert found.tokens()[1].padding == (True, True, False, False, False, False, False, False)
    assert found.tokens()[0].texts[:5] == ("[CLS]", "a", "good", "film", "[SEP]")
    assert [len(t) for t in found.new_tokens()] == [3, 3]
    alone = xmodel.explain_generation("bad", max_new_tokens=3)
    assert torch.equal(found.sequences[1, 2:], alone.sequences[0])
    close(found[1].relevance["input_ids"][:, :, 2:], alone.relevance["input_ids"])
    answer = xmodel.explain("a good").context.answers[0]
    assert answer.strip("'") in PIECES


@pytest.mark.slow
def test_an_encoder_decoder_begins_with_its_start_token():
    torch.manual_seed(0)
    config = tf.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(PIECES), decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    found = lrp_fx.convert(tf.T5ForConditionalGeneration(config).double().eval(), tokenizer=tokenizer()).explain(
        "a good film"
    )
    assert found.token_inputs == ["input_ids", "decoder_input_ids"] and found.relevance["decoder_input_ids"].shape == (
        1,
        1,
    )
    assert found.tokens("decoder_input_ids")[0].texts == ("[PAD]",)


def test_a_tokenizer_needs_no_library():
    """Whatever has its methods serves; without offsets, pieces say where words begin."""

    class Letters:
        all_special_ids, pad_token_id = (), 0

        def __call__(self, text, **options):
            ids = [ord(c) - 96 for c in text if c != " "]
            return {"input_ids": ids, "special_tokens_mask": [0] * len(ids), "attention_mask": [1] * len(ids)}

        def convert_ids_to_tokens(self, ids):
            return [chr(i + 96) for i in ids]

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(30, 4), torch.nn.Linear(4, 2)

        def forward(self, input_ids):
            return self.head(self.embedding(input_ids).mean(1))

    found = lrp_fx.convert(Model(), tokenizer=Letters()).explain("a cat")
    assert found.tokens()[0].texts == ("a", "c", "a", "t") and found.tokens()[0].text is None


@pytest.mark.parametrize(
    ("value", "is_text"),
    [("a", True), (("a", "b"), True), (["a", ("b", "c")], True), ([], False), (("a",), False), (["a", 1], False), (None, False)],
)  # fmt: skip
def test_what_is_a_text(value, is_text):
    assert are_texts(value) == is_text


def test_limits_and_labels_are_found():
    encoder = InputEncoder.of(classifier(), {"tokenizer": tokenizer(model_max_length=8)})
    assert encoder.texts.limit == 8 and encoder.answer(1, 2) == "gripping"
    assert encoder.answer(5, len(PIECES)) == "'good'" and encoder.answer(1, 3) == "output 1"
    assert InputEncoder.of(torch.nn.Linear(1, 1), {}, {1: "b", 0: "a"}).labels == ("a", "b")
    assert InputEncoder.of(torch.nn.Linear(1, 1), {}) is None
