"""The export format "lrp" of transformers: save, load, pipelines."""

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.exporters import AutoExportConfig, AutoHfExporter, ExportedModel

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.integrations.transformers import ExportedModule, LrpConfig, LrpExporter

WORDS = ["[PAD]", "[UNK]", "[CLS]", *(f"w{i}" for i in range(30))]


@pytest.fixture(scope="module")
def tokenizer():
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=table, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"}, pad_token_id=0,
    )  # fmt: skip
    return tf.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    inputs = tokenizer(["w1 w2 w3", "w4 w5 w6"], return_tensors="pt")
    config = AutoExportConfig.from_dict({"export_format": "lrp", "rules": "attnlrp", "at": ["bert.encoder.layer.0"]})
    exporter = AutoHfExporter.from_config(config)
    assert isinstance(config, LrpConfig) and isinstance(exporter, LrpExporter)
    exported = exporter.export(model, dict(inputs), config)
    torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits)
    exported.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    return ExportedModel.from_pretrained(folder)  # no trust_remote_code: loading runs no code of the file


@pytest.mark.slow
def test_a_loaded_export_answers_and_explains_as_the_model_does(model, tokenizer, loaded):
    inputs = tokenizer(["w7 w8 w9 w1 w2", "w3 w3 w3 w3 w1", "w5 w6 w1 w9 w9"], return_tensors="pt")  # another size
    outputs = loaded(**inputs)
    assert isinstance(outputs, tf.modeling_outputs.SequenceClassifierOutput)
    torch.testing.assert_close(outputs.logits, model(**inputs).logits)
    found = loaded.runners["model"].explain(**inputs, target=2)
    expected = lrp_fx.convert(model, rules="attnlrp").explain(**inputs, target=2, at="bert.encoder.layer.0")
    torch.testing.assert_close(found.relevance["input_ids"], expected.relevance["input_ids"])
    torch.testing.assert_close(found.latents["bert.encoder.layer.0"], expected.latents["bert.encoder.layer.0"])
    assert loaded.config.id2label[2] == "good" and loaded.dtype is torch.float32


def test_a_loaded_export_is_saved_again(loaded, tokenizer, tmp_path):
    loaded.save_pretrained(tmp_path)
    inputs = tokenizer(["w1 w2"], return_tensors="pt")
    again = ExportedModel.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, loaded(**inputs).logits)


def test_pipelines_answer_and_explain(model, tokenizer, loaded, caplog):
    module = ExportedModule(loaded, tokenizer=tokenizer)
    plain = tf.pipeline("text-classification", model=model, tokenizer=tokenizer)
    pipe = lrp_fx.pipeline("text-classification", module, tokenizer=tokenizer)
    assert isinstance(module, ExportedModule) and not caplog.records  # transformers: "is not supported for"
    one, other = pipe("w1 w5 w9"), lrp_fx.pipeline(plain, rules="attnlrp")("w1 w5 w9")
    assert one.answer[0]["label"] == other.answer[0]["label"]
    assert one.answer[0]["score"] == pytest.approx(other.answer[0]["score"])
    torch.testing.assert_close(one.attribution.relevance["input_ids"], other.attribution.relevance["input_ids"])
    assert one.attribution.tokens() == other.attribution.tokens()
    with pytest.raises(InputError, match="has the rules 'attnlrp'"):
        pipe("w1 w2", rules="cp_lrp")
    with pytest.raises(InputError, match="nothing encodes this text"):
        ExportedModule(loaded).explain("w1")


def test_another_device_is_refused(folder):
    with pytest.raises(InputError, match="runs on cpu"):
        ExportedModel.from_pretrained(folder, device="meta")
