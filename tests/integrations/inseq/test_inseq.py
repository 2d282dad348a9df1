"""inseq 0.7.1: our methods under its names, and generated texts as its results."""

import inseq
import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import lrp_fx
import lrp_fx.integrations.inseq  # registers the methods
from lrp_fx.results import Tokens

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]


@pytest.fixture
def tokenizer():
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=table, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def model():
    config = tf.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=2, eos_token_id=3, pad_token_id=1, max_position_embeddings=64,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def attributed(model, tokenizer, method, **options):
    known = inseq.load_model(model, method, tokenizer=tokenizer)
    found = known.attribute(
        "the cat sat", "the cat sat on a mat", attributed_fn="logit", show_progress=False, **options
    )
    return known, found.sequence_attributions[0]


def test_a_registered_method_gives_the_relevance_of_explain(model, tokenizer):
    known, found = attributed(model, tokenizer, "attnlrp")
    assert {"lrp", "attnlrp"} <= set(inseq.list_feature_attribution_methods())
    ids = tokenizer("the cat sat on a mat", return_tensors="pt").input_ids
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for step, (prefix, word) in enumerate([(3, "on"), (4, "a"), (5, "mat")]):
        expected = xmodel.explain(input_ids=ids[:, :prefix], target=WORDS.index(word)).relevance["input_ids"][0]
        np.testing.assert_allclose(found.target_attributions[:prefix, step], expected.detach(), rtol=1e-3, atol=1e-6)
    assert found.target_attributions.dim() == 2  # summed: inseq's norms would not add up
    known.attribution_method.unhook()
    assert known.model is model


def test_other_rules_and_what_inseq_does_with_scores(model, tokenizer):
    _, default = attributed(model, tokenizer, "lrp")
    _, attnlrp = attributed(model, tokenizer, "attnlrp")
    assert not np.allclose(default.target_attributions[:3], attnlrp.target_attributions[:3])
    html = default.show(display=False, return_html=True)
    assert "mat" in html


def test_a_generation_as_a_result_of_inseq(model, tmp_path):
    ids = torch.tensor([[4, 5, 6], [4, 10, 11]])
    made = lrp_fx.convert(model).explain_generation(ids, max_new_tokens=3, options={"min_new_tokens": 3})
    words = tuple(Tokens.plain([WORDS[i] for i in row]) for row in made.sequences.tolist())
    result = made.knowing(tokens={"input_ids": words}).to_inseq()
    first = result.sequence_attributions[0]
    assert [t.token for t in first.source] == ["the", "cat", "sat"] and len(first.target) == 6
    assert first.attr_pos_start == 3 and first.target_attributions.shape == (6, 3)
    np.testing.assert_allclose(first.target_attributions[:5, 2], made.relevance["input_ids"][0, 2, :5], rtol=1e-6)
    assert first.target_attributions[4, 1].isnan() and first.target_attributions[3, 1].isfinite()
    np.testing.assert_allclose(first.step_scores["target"], made.target[0], rtol=1e-6)
    assert "cat" in result.show(display=False, return_html=True)
    result.save(tmp_path / "out.json")
    again = inseq.FeatureAttributionOutput.load(tmp_path / "out.json")
    np.testing.assert_allclose(again.sequence_attributions[1].target_attributions, result[1].target_attributions)


def test_an_encoder_with_a_decoder():
    config = tf.T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = tf.T5ForConditionalGeneration(config).eval()
    made = lrp_fx.convert(model).explain_generation(
        torch.tensor([[5, 6, 7, 1]]), max_new_tokens=3, options={"min_new_tokens": 3}
    )
    (found,) = made.to_inseq().sequence_attributions
    assert found.source_attributions.shape == (4, made.count) and len(found.target) == made.sequences.shape[1]
    np.testing.assert_allclose(found.source_attributions[:, 0], made.relevance["input_ids"][0, 0], rtol=1e-6)
