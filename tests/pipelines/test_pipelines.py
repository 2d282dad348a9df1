"""Every task of the table on a tiny random model: the answer is the pipeline's own, and what is explained is what was answered."""

import wave

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.pipelines import TASKS

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", "user", "assistant", "is", "it", "a", "good", "bad", "film",
    "this", "example", "about", ".",
]  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %} {{ p.text }}{% endif %}{% endfor %}{% endif %} [SEP] {% endfor %}assistant"
)


def tokenizer():
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    made = tf.PreTrainedTokenizerFast(tokenizer_object=backend, **names, extra_special_tokens=["<image>"])
    made.chat_template = TEMPLATE
    return made


def bert(kind, **options):
    torch.manual_seed(0)
    config = tf.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=32, **options)
    return kind(config).eval()


def llama():
    torch.manual_seed(0)
    config = tf.LlamaConfig(**SMALL, vocab_size=len(WORDS), eos_token_id=None, bos_token_id=None, pad_token_id=0)
    return tf.LlamaForCausalLM(config).eval()


def photo(size=12):
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))


def tone(seconds=0.1):
    return np.sin(2 * np.pi * 440 * np.arange(int(seconds * 16000)) / 16000).astype(np.float32)


def listener(kind, **options):
    torch.manual_seed(0)
    config = tf.Wav2Vec2Config(
        **SMALL, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8, feat_extract_norm="layer",
        **options,
    )  # fmt: skip
    return kind(config).eval()


def test_text_classification_as_the_pipeline_answers():
    pipe = lrp_fx.pipeline(
        "sentiment-analysis",
        bert(tf.BertForSequenceClassification, id2label={0: "dull", 1: "great"}),
        tokenizer=tokenizer(),
    )
    explained = pipe("a good film")
    assert explained.answer == pipe.pipe("a good film")
    assert explained.attribution.context.answers == (explained.answer[0]["label"],)
    assert float(explained.attribution.target) == pytest.approx(float(explained.attribution.output.logits.max()))
    answer, attribution = pipe("a good film")
    assert answer == explained.answer and float(attribution.target) == float(explained.attribution.target)
    both = pipe(["a good film", {"text": "a bad film", "text_pair": "is it"}])
    assert [type(one).__name__ for one in both] == ["Explained"] * 2
    assert both[1].attribution.tokens()[0].text == "a bad film\nis it"
    again = lrp_fx.pipeline(pipe.pipe)  # a pipeline of transformers as it is
    assert again("a good film").answer == explained.answer and again.task == "text-classification"


def test_token_classification_explains_every_entity():
    model = bert(tf.BertForTokenClassification, id2label={0: "O", 1: "B-FILM", 2: "I-FILM"})
    pipe = lrp_fx.pipeline("ner", model, tokenizer=tokenizer())
    explained = pipe("is it a good film .")
    assert explained.answer and explained.answer == pipe.pipe("is it a good film .")
    assert explained.attribution.count == len(explained.answer)
    logits = pipe.xmodel(**tokenizer()("is it a good film .", return_tensors="pt")).logits[0]
    for number, entity in enumerate(explained.answer):
        assert float(explained.attribution.target[number, 0]) == pytest.approx(
            float(logits[entity["index"]].max()), rel=1e-5
        )
        assert entity["word"] in explained.attribution.name_of(number)
    grouped = pipe("is it a good film .", aggregation_strategy="simple")
    assert grouped.attribution.count == len(grouped.answer)
    assert float(grouped.attribution.target.sum()) == pytest.approx(float(explained.attribution.target.sum()), rel=1e-5)
    quiet = lrp_fx.pipeline(
        "ner", bert(tf.BertForTokenClassification, id2label={0: "O", 1: "O", 2: "O"}), tokenizer=tokenizer()
    )
    assert quiet("a film").answer == [] and quiet("a film").attribution is None


def test_fill_mask_explains_the_token_at_its_place():
    pipe = lrp_fx.pipeline("fill-mask", bert(tf.BertForMaskedLM), tokenizer=tokenizer())
    explained = pipe("a [MASK] film")
    assert explained.answer == pipe.pipe("a [MASK] film")
    logits = pipe.xmodel(**tokenizer()("a [MASK] film", return_tensors="pt")).logits
    assert float(explained.attribution.target) == pytest.approx(
        float(logits[0, 2, explained.answer[0]["token"]]), rel=1e-5
    )
    two = pipe("a [MASK] [MASK]")
    assert two.attribution.names == tuple(row[0]["token_str"] for row in two.answer)


def test_zero_shot_explains_each_label():
    model = bert(
        tf.BertForSequenceClassification,
        id2label={0: "contradiction", 1: "entailment"},
        label2id={"contradiction": 0, "entailment": 1},
    )
    pipe = lrp_fx.pipeline("zero-shot-classification", model, tokenizer=tokenizer())
    explained = pipe("a good film", candidate_labels=["good", "bad"], hypothesis_template="this is {} .")
    assert explained.answer == pipe.pipe(
        "a good film", candidate_labels=["good", "bad"], hypothesis_template="this is {} ."
    )
    assert [one.tokens()[0].text.split("\n")[1] for one in explained.attribution] == [
        f"this is {x} ." for x in explained.answer["labels"]
    ]
    shares = explained.attribution.target.double().softmax(0)
    assert shares.tolist() == pytest.approx(explained.answer["scores"], rel=1e-4)


def test_question_answering_finds_a_passage_of_the_context():
    pipe = lrp_fx.pipeline("question-answering", bert(tf.BertForQuestionAnswering), tokenizer=tokenizer())
    context = "this is a good film ."
    explained = pipe({"question": "is it good", "context": context})
    answer = explained.answer
    assert answer["answer"] == context[answer["start"] : answer["end"]] != "" and 0 < answer["score"] <= 1
    output = pipe.xmodel.model(**tokenizer()("is it good", context, return_tensors="pt"))
    sums = output.start_logits[0, 5:11, None] + output.end_logits[0, None, 5:11]
    best = float(sums.detach().masked_fill(~torch.ones(6, 6).triu().bool(), -torch.inf).max())
    assert float(explained.attribution.target) == pytest.approx(best, rel=1e-5)
    assert explained.attribution.context.answers == (answer["answer"],)
    assert len(pipe(("is it good", context), max_answer_len=1).answer["answer"].split()) == 1
    with pytest.raises(InputError, match=r"question.*context"):
        pipe("is it good")


def test_text_generation_explains_the_text_that_is_answered():
    pipe = lrp_fx.pipeline("text-generation", llama(), tokenizer=tokenizer())
    explained = pipe("is it a", max_new_tokens=3)
    assert explained.answer == pipe.pipe("is it a", max_new_tokens=3, do_sample=False)
    assert len(explained.attribution.new_tokens()[0]) == 3
    chat = [{"role": "user", "content": "is it good"}]
    talked = pipe(chat, max_new_tokens=2)
    assert talked.answer == pipe.pipe(chat, max_new_tokens=2, do_sample=False)
    assert talked.answer[0]["generated_text"][-1]["role"] == "assistant"
    new = pipe("is it a", max_new_tokens=3, return_full_text=False).answer[0]["generated_text"]
    assert explained.answer[0]["generated_text"] == "is it a" + new


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "key"), [("summarization", "summary_text"), ("translation_en_to_de", "translation_text")]
)
def test_texts_that_become_others(task, key):
    torch.manual_seed(0)
    config = tf.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(WORDS), decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=3, task_specific_params={"summarization": {"prefix": "this is about "}},
    )  # fmt: skip
    model = tf.T5ForConditionalGeneration(config).eval()
    explained = lrp_fx.pipeline(task, model, tokenizer=tokenizer())("a good film", max_new_tokens=4)
    begins = explained.attribution.tokens("input_ids")[0].text
    assert begins == ("this is about a good film" if key == "summary_text" else "a good film")
    ids = tokenizer()(begins, return_tensors="pt")
    expected = model.generate(
        **{k: v for k, v in ids.items() if k != "token_type_ids"}, max_new_tokens=4, do_sample=False
    )[0, 1:]
    assert explained.answer == [{key: tokenizer().decode(expected, skip_special_tokens=True)}]
    assert explained.attribution.sequences[0, 1:].tolist() == expected.tolist()


def test_sentences_that_are_alike():
    pipe = lrp_fx.pipeline("sentence-similarity", bert(tf.BertModel), tokenizer=tokenizer())
    explained = pipe(("a good film", "a bad film"))
    assert explained.answer == pytest.approx(float(explained.attribution.similarity)) and -1 <= explained.answer <= 1
    assert float(explained.attribution.table.sum()) == pytest.approx(explained.answer, rel=1e-3)
    assert explained.attribution.tokens()[0].texts == ("[CLS]", "a", "good", "film", "[SEP]")
    several = pipe({"source_sentence": "a good film", "sentences": ["a bad film", "it"]})
    assert several.answer[0] == pytest.approx(explained.answer, rel=1e-4) and len(several.answer) == 2


def test_image_classification(tmp_path):
    torch.manual_seed(0)
    config = tf.ViTConfig(**SMALL, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog", 2: "car"})
    model = tf.ViTForImageClassification(config).eval()
    pipe = lrp_fx.pipeline(
        "image-classification", model, image_processor=ViTImageProcessorPil(size={"height": 8, "width": 8})
    )
    explained = pipe(photo())
    assert explained.answer == pipe.pipe(photo())
    assert explained.attribution.context.answers == (explained.answer[0]["label"],)
    photo().save(tmp_path / "photo.png")
    assert pipe(str(tmp_path / "photo.png")).answer == explained.answer
    with pytest.raises(InputError, match="cannot be read as an image"):
        pipe("nowhere.png")


def test_image_segmentation_explains_each_segment():
    torch.manual_seed(0)
    config = tf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, id2label={0: "sky", 1: "sea", 2: "sand"},
    )  # fmt: skip
    model = tf.SegformerForSemanticSegmentation(config).eval()
    pipe = lrp_fx.pipeline(
        "image-segmentation", model, image_processor=SegformerImageProcessorPil(size={"height": 16, "width": 16})
    )
    explained = pipe(photo(16))
    assert [one["label"] for one in explained.answer] == list(explained.attribution.names)
    logits = explained.attribution.inputs["pixel_values"]
    logits = pipe.xmodel(logits).logits[0]
    best = logits.argmax(0)
    for number, one in enumerate(explained.answer):
        index = ["sky", "sea", "sand"].index(one["label"])
        assert float(explained.attribution.target[number, 0]) == pytest.approx(
            float(logits[index][best == index].sum()), rel=1e-4
        )


@pytest.mark.slow
def test_masks_of_queries_explain_the_query_of_each_segment():
    torch.manual_seed(0)
    backbone = tf.SwinConfig(
        image_size=32, embed_dim=4, depths=[1] * 4, num_heads=[1] * 4, window_size=2, patch_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = tf.DetrConfig(
        d_model=8, decoder_layers=1, decoder_ffn_dim=8, decoder_attention_heads=1, num_queries=4,
        backbone_config=tf.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], out_features=["stage1"]),
    )  # fmt: skip
    config = tf.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=8, backbone_config=backbone, decoder_config=decoder,
        id2label={0: "sky", 1: "sea", 2: "sand"},
    )  # fmt: skip
    model = tf.MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.mul_(20)
        model.class_predictor.bias[-1] -= 1000  # always an object
    processor = MaskFormerImageProcessorPil(size={"height": 32, "width": 32}, size_divisor=1)
    pipe = lrp_fx.pipeline("image-segmentation", model, image_processor=processor)
    answer, attribution = pipe(photo(32), threshold=0.0, mask_threshold=0.0, overlap_mask_area_threshold=0.0)
    assert answer and [one["label"] for one in answer] == list(attribution.names)
    output = pipe.xmodel(attribution.inputs["pixel_values"], attribution.inputs.get("pixel_mask"))
    for number, one in enumerate(answer):
        label = ["sky", "sea", "sand"].index(one["label"])
        inside = torch.as_tensor(np.asarray(one["mask"]) != 0, dtype=torch.float32)[None, None]
        inside = torch.nn.functional.interpolate(inside, output.masks_queries_logits.shape[-2:], mode="area")[0, 0]
        inside = inside > (0.5 if bool((inside > 0.5).any()) else 0)
        values = output.class_queries_logits[0, :, label] + output.masks_queries_logits[0][:, inside].mean(1)
        assert float((values - attribution.target[number, 0]).abs().min()) < 1e-4
        assert float(attribution.relevance["pixel_values"][number].abs().sum()) > 0


@pytest.mark.slow
def test_an_image_and_a_text_that_goes_on():
    torch.manual_seed(0)
    vision = tf.CLIPVisionConfig(**(SMALL | {"num_hidden_layers": 2}), image_size=8, patch_size=4, projection_dim=16)
    text = tf.LlamaConfig(**SMALL, vocab_size=len(WORDS), eos_token_id=None, bos_token_id=None, pad_token_id=0)
    config = tf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=5, vision_feature_layer=-1, image_seq_length=4,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8}), tokenizer(),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    pipe = lrp_fx.pipeline("image-text-to-text", tf.LlavaForConditionalGeneration(config).eval(), processor=processor)
    options = {"generate_kwargs": {"suppress_tokens": [5]}, "max_new_tokens": 2}
    chat = [{"role": "user", "content": [{"type": "image", "image": photo()}, {"type": "text", "text": "is it good"}]}]
    explained = pipe(chat, **options)
    assert len(explained.attribution.new_tokens()[0]) == 2 and "pixel_values" in explained.attribution.relevance
    assert explained.answer[0]["generated_text"][-1]["role"] == "assistant"
    beside = pipe({"images": photo(), "text": "user <image> is it"}, **options)
    theirs = pipe.pipe(
        photo(),
        text="user <image> is it",
        max_new_tokens=2,
        generate_kwargs={"suppress_tokens": [5], "do_sample": False},
    )
    assert beside.answer == theirs


def test_audio_classification(tmp_path):
    model = listener(tf.Wav2Vec2ForSequenceClassification, id2label={0: "yes", 1: "no"})
    pipe = lrp_fx.pipeline("audio-classification", model, feature_extractor=tf.Wav2Vec2FeatureExtractor())
    explained = pipe({"array": tone(), "sampling_rate": 16000})
    assert explained.answer == pipe.pipe({"array": tone(), "sampling_rate": 16000})
    assert explained.attribution.context.answers == (explained.answer[0]["label"],)
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((tone() * 32767).astype("<i2").tobytes())
    assert pipe(str(tmp_path / "tone.wav")).answer[0]["label"] == explained.answer[0]["label"]


def test_speech_is_explained_letter_by_letter():
    letters = tf.Wav2Vec2CTCTokenizer.__call__ and [*"<>|ABCDEFGH"]
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(letters)}, unk_token="<"))
    spelling = tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=">", unk_token="<")
    model = listener(tf.Wav2Vec2ForCTC, vocab_size=len(letters), pad_token_id=1)
    pipe = lrp_fx.pipeline(
        "automatic-speech-recognition", model, tokenizer=spelling, feature_extractor=tf.Wav2Vec2FeatureExtractor()
    )
    explained = pipe({"array": tone(), "sampling_rate": 16000})
    assert set(explained.answer) == {"text"}
    logits = model(explained.attribution.inputs["input_values"]).logits[0]
    runs = [
        t
        for t, before in zip(logits.argmax(-1).tolist(), [None, *logits.argmax(-1).tolist()], strict=False)
        if t != before and t != 1
    ]
    assert [letters[t] for t in runs] == list(explained.attribution.names)
    assert float(explained.attribution.target.max()) == pytest.approx(
        float(logits[:, [i for i in range(len(letters)) if i != 1]].max()), rel=1e-4
    )


@pytest.mark.slow
def test_speech_is_explained_token_by_token():
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=50, max_target_positions=10,
        vocab_size=len(WORDS), decoder_start_token_id=3, pad_token_id=0, bos_token_id=2, eos_token_id=0,
    )  # fmt: skip
    model = tf.WhisperForConditionalGeneration(config).eval()
    extractor = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    xmodel = lrp_fx.convert(model, feature_extractor=extractor, tokenizer=tokenizer())
    written = xmodel.explain_generation({"array": tone(), "sampling_rate": 16000}, max_new_tokens=3)
    features = extractor(tone(), sampling_rate=16000, return_tensors="pt")["input_features"]
    tokens = model.generate(features, max_new_tokens=3, do_sample=False)[0]
    assert written.sequences[0, : written.start].tolist() == [3]
    assert written.sequences[0, -written.count :].tolist() == tokens[-written.count :].tolist()
    assert written.relevance["input_features"].shape == (1, written.count, 8, 100)


@pytest.mark.slow
def test_what_a_decoder_read_before_its_first_token_is_found_out():
    """Some models return new tokens alone: what stands before them decides what their logits are."""
    torch.manual_seed(0)
    config = tf.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(WORDS), decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=3,
    )  # fmt: skip

    class Silent(tf.T5ForConditionalGeneration):
        def generate(self, *args, **kwargs):
            begin = torch.tensor([[0, 7, 8]])
            return super().generate(*args, decoder_input_ids=begin, **kwargs)[:, 3:]

    model = Silent(config).double().eval()
    xmodel = lrp_fx.convert(model, tokenizer=tokenizer())
    written = xmodel.explain_generation("a good film", max_new_tokens=2)
    assert written.start == 3 and written.sequences[0, :3].tolist() == [0, 7, 8] and written.count <= 2
    ids = tokenizer()("a good film", return_tensors="pt")
    logits = model(
        input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], decoder_input_ids=written.sequences
    ).logits
    expected = [float(logits[0, 2 + i, written.sequences[0, 3 + i]]) for i in range(written.count)]
    assert written.target[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_rows_of_a_table():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    pipe = lrp_fx.pipeline("tabular", model, labels=["refused", "granted"])
    explained = pipe({"age": 40, "income": 2.5, "debt": 1.0})
    logits = model(torch.tensor([40, 2.5, 1.0]).double())
    assert explained.answer == {
        "label": ["refused", "granted"][int(logits.argmax())],
        "score": pytest.approx(float(logits.softmax(0).max())),
    }
    assert {s.text for s in explained.attribution.top(3)} == {"age", "income", "debt"}
    import pandas

    frame = pandas.DataFrame({"age": [40, 20], "income": [2.5, 1], "debt": [1, 3]})
    assert pipe(frame).answer[0] == explained.answer and len(pipe(frame).attribution) == 2
    value = lrp_fx.pipeline("tabular", torch.nn.Linear(3, 1).double())(np.array([1.0, 2.0, 3.0]))
    assert value.answer["value"] == pytest.approx(float(value.attribution.target))
    with pytest.raises(InputError, match="a row of a table is"):
        pipe("nonsense")


def test_errors_name_the_tasks():
    with pytest.raises(InputError, match=r"no task 'text-to-audio': choose one of text-classification"):
        lrp_fx.pipeline("text-to-audio", llama())
    with pytest.raises(InputError, match="needs a model"):
        lrp_fx.pipeline("fill-mask")
    assert set(TASKS) >= {"text-classification", "tabular"}


MINE = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, words=30, width=16, heads=2, classes=3):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(10, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, classes)

    def forward(self, ids):
        x = self.words(ids) + self.places[: ids.shape[1]]
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return self.head(x.mean(1))
"""
OF_ONES_OWN = """
import torch, lrp_fx
from mine import Transformer
model = Transformer().eval()
attribution = lrp_fx.convert(model).explain(torch.tensor([[5, 17, 4, 8]]))
attribution.plot().savefig("own.png")
"""
OF_A_PIPELINE = """
import lrp_fx
answer, attribution = lrp_fx.pipeline(pipe)("a good film")
attribution.plot().savefig("pipe.svg")
"""


def test_a_picture_takes_a_newcomer_five_lines_and_with_a_pipeline_three(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    assert len(MINE.strip().splitlines()) <= 32
    assert [len(code.strip().splitlines()) for code in (OF_ONES_OWN, OF_A_PIPELINE)] == [5, 3]
    exec(compile(OF_ONES_OWN, "own", "exec"), {})
    exec(compile(OF_A_PIPELINE, "pipe", "exec"), {"pipe": tf.pipeline(
        "text-classification", model=bert(tf.BertForSequenceClassification), tokenizer=tokenizer()
    )})  # fmt: skip
    assert (tmp_path / "own.png").stat().st_size > 3000 and "film" in (tmp_path / "pipe.svg").read_text()
