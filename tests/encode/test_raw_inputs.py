"""Chats, images and sound in: what they become, what results know of them, what is cut off, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import lrp_fx
from lrp_fx.encode import kind_of
from lrp_fx.encode.sounds import SoundEncoder
from lrp_fx.errors import InputError

WORDS = ["<pad>", "<unk>", "<turn>", "<end>", "<image>", "user", "assistant", "is", "it", "good", "bad", "yes", "no"]
TEMPLATE = (
    "{% for m in messages %}<turn> {{ m.role }} {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %} {{ p.text }}{% endif %}{% endfor %}{% endif %} <end> "
    "{% endfor %}{% if add_generation_prompt %}<turn> assistant{% endif %}"
)


def tokenizer(**options):
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": ["<turn>", "<end>", "<image>"]}
    made = tf.PreTrainedTokenizerFast(tokenizer_object=backend, **(names | options))
    made.chat_template = TEMPLATE
    return made


def text_config():
    return tf.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(WORDS),
        eos_token_id=None, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip


def photo(width=20, height=14):
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape and float((a - b).abs().max()) < tolerance


CHAT = [{"role": "user", "content": "is it good"}]


@pytest.mark.slow
def test_a_chat_goes_through_the_template_and_knows_what_was_said():
    torch.manual_seed(0)
    xmodel = lrp_fx.convert(tf.LlamaForCausalLM(text_config()).double().eval(), tokenizer=tokenizer())
    result = xmodel.explain(CHAT)
    tokens = result.tokens()[0]
    assert tokens.texts == ("<turn>", "user", "is", "it", "good", "<end>", "<turn>", "assistant")
    assert [t for t, s in zip(tokens.texts, tokens.special, strict=True) if not s] == ["is", "it", "good"]
    ids = torch.tensor([[WORDS.index(t) for t in tokens.texts]])
    close(result.relevance["input_ids"], xmodel.explain(input_ids=ids).relevance["input_ids"])
    both = xmodel.explain([CHAT, [{"role": "user", "content": "bad"}]])
    close(both[0].relevance["input_ids"], result.relevance["input_ids"])
    assert both[1].tokens()[0].padding == (False,) * 6 + (True,) * 2
    written = xmodel.explain_generation(CHAT, max_new_tokens=2)
    assert [len(t) for t in written.new_tokens()] == [2] and written.start == 8
    assert written.tokens()[0].special[:8] == tokens.special and not any(written.new_tokens()[0].special)
    begun = xmodel.explain([*CHAT, {"role": "assistant", "content": "yes"}]).tokens()[0]
    assert begun.texts[-1] == "yes" and not begun.special[-1]


def test_chats_that_cannot_be_read_are_refused():
    model = tf.LlamaForCausalLM(text_config()).eval()
    with pytest.raises(InputError, match="the chat has 8 tokens, and the model reads 6: shorten it"):
        lrp_fx.convert(model, tokenizer=tokenizer(model_max_length=6)).explain(CHAT)
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"set tokenizer.chat_template, or give a text"):
        lrp_fx.convert(model, tokenizer=bare).explain(CHAT)
    with pytest.raises(InputError, match=r"nothing encodes this chat: lrp_fx.convert\(model, tokenizer=...\)"):
        lrp_fx.convert(model).explain(CHAT)


def vit(**options):
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "car"}, **options,
    )  # fmt: skip
    return tf.ViTForImageClassification(config).double().eval()


def test_an_image_is_explained_and_drawn_as_the_model_saw_it(tmp_path):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    xmodel = lrp_fx.convert(vit(), image_processor=processor)
    result = xmodel.explain([photo(), photo(9, 9)])
    pixels = processor([photo(), photo(9, 9)], return_tensors="pt")["pixel_values"].double()
    close(result.relevance["pixel_values"], xmodel.explain(pixel_values=pixels).relevance["pixel_values"])
    assert len(result) == 2 and set(result.context.answers) <= {"cat", "dog", "car"}
    one = result[0]
    seen = one.plot().axes[0].images[0].get_array()
    expected = np.asarray(photo().resize((8, 8), Image.Resampling.BILINEAR), float) / 255
    assert np.abs(seen - expected).max() < 1e-6  # not stretched: the colours that the image has
    assert len(one.plot("overlay").axes) >= 2
    assert "data:image/png" in one.view(tmp_path / "view.html").read_text()
    again = lrp_fx.load_result(one.save(tmp_path / "one.json.gz"))
    assert again.context.normalization == one.context.normalization != {}
    assert np.abs(again.plot().axes[0].images[0].get_array() - seen).max() < 1e-6


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_an_image_of_any_mode_has_the_channels_of_the_processor(mode):
    from lrp_fx.encode.images import ImageEncoder

    image = Image.new(mode, (5, 3))
    three = ImageEncoder(ViTImageProcessorPil(size={"height": 4, "width": 4}), "pixel_values")
    assert three.encode(image)["pixel_values"].shape == (1, 3, 4, 4)
    grey = ViTImageProcessorPil(size={"height": 4, "width": 4}, image_mean=[0.5], image_std=[0.5])
    if mode == "L":
        assert ImageEncoder(grey, "pixel_values").encode(image)["pixel_values"].shape == (1, 1, 4, 4)
    for shape in ((3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4)):
        array = np.zeros(shape, dtype=np.uint8)
        assert three.encode([array, Image.new("RGB", (1, 1))])["pixel_values"].shape == (2, 3, 4, 4)


def test_any_function_of_an_image_serves():
    class Steps:
        def __init__(self):
            self.transforms = [
                type("Normalize", (), {"mean": [0.5, 0.5, 0.5], "std": torch.tensor([0.25, 0.25, 0.25])})()
            ]

        def __call__(self, image):
            return (torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255 - 0.5) / 0.25

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    result = lrp_fx.convert(model, image_processor=Steps(), labels=["night", "day"]).explain(photo())
    assert result.relevance["input"].shape == (1, 3, 14, 20) and result.context.answers[0] in ("night", "day")
    seen = result.plot().axes[0].images[0].get_array()
    assert np.abs(seen - np.asarray(photo(), float) / 255).max() < 1e-6


def listener():
    torch.manual_seed(0)
    config = tf.Wav2Vec2Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, id2label={0: "yes", 1: "no"}, feat_extract_norm="layer",
    )  # fmt: skip
    return tf.Wav2Vec2ForSequenceClassification(config).eval()


def tone(seconds=0.1, rate=16000, pitch=440.0):
    return np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.slow
def test_sound_has_its_rate_and_is_drawn_as_a_wave(tmp_path):
    extractor = tf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    xmodel = lrp_fx.convert(listener(), feature_extractor=extractor)
    result = xmodel.explain({"array": tone(), "sampling_rate": 16000})
    values = extractor(tone(), sampling_rate=16000, return_tensors="pt")["input_values"]
    close(result.relevance["input_values"], xmodel.explain(input_values=values).relevance["input_values"], 1e-5)
    assert result.context.sampling_rate == 16000 and result.context.answers[0] in ("yes", "no")
    close(result.relevance["input_values"], xmodel.explain(tone(), sampling_rate=16000).relevance["input_values"])
    assert result.plot().axes[0].get_xlabel() == "seconds"
    assert "data:audio/wav" in result.view(tmp_path / "view.html").read_text()
    assert not result.context.notes
    both = xmodel.explain([tone(), tone(0.05)], sampling_rate=16000, target=0)
    assert both.relevance["input_values"].shape == (2, 1600)
    assert float(both.relevance["input_values"][1, 800:].abs().max()) == 0


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_any_width(tmp_path, width):
    import wave

    from lrp_fx.encode import open_sound

    values = np.array([0, 0.5, -0.5, 0.25])
    scaled = (values * 2 ** (8 * width - 1)).astype("<i4") + (128 if width == 1 else 0)
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(b"".join(row.tobytes()[:width] for row in scaled))
    assert np.array_equal(open_sound(tmp_path / "x.wav")["array"], values.astype(np.float32))


def test_a_decoder_is_a_sound():
    """What data sets of Hugging Face hold: several channels, and a rate of its own."""
    waves = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 1600))).float()
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=waves, sample_rate=8000))
    listens = SoundEncoder(tf.Wav2Vec2FeatureExtractor(1, 16000, 0.0, do_normalize=False))
    assert kind_of(decoder) == kind_of([decoder]) == "sound"
    plain = {"array": waves.mean(0).numpy(), "sampling_rate": 8000}
    for one, other in zip(listens.waves([decoder], None), listens.waves([plain], None), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sound_of_another_rate_is_resampled():
    xmodel = lrp_fx.convert(listener(), feature_extractor=tf.Wav2Vec2FeatureExtractor(do_normalize=False))
    low = xmodel.explain(tone(0.1, 8000), sampling_rate=8000)
    assert low.relevance["input_values"].shape == (1, 1600)
    assert np.abs(low.inputs["input_values"][0].numpy()[200:-200] - tone()[200:-200]).max() < 0.02


@pytest.mark.slow
def test_sound_beyond_what_the_model_hears_is_told():
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=50, max_target_positions=10,
        vocab_size=20, decoder_start_token_id=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    extractor = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    xmodel = lrp_fx.convert(tf.WhisperForConditionalGeneration(config).eval(), feature_extractor=extractor)
    with pytest.warns(UserWarning, match=r"sound 0 has 1.5 s, and the model hears 1(.0\d*)? s: the rest was cut off"):
        result = xmodel.explain(tone(1.5), sampling_rate=16000)
    assert [n.name for n in result.context.notes] == ["cut off"]
    assert result.relevance["input_features"].shape == (1, 8, 100)
    assert result.inputs["decoder_input_ids"].tolist() == [[3]]
    assert not xmodel.explain(tone(1.0), sampling_rate=16000).context.notes


@pytest.mark.slow
def test_an_image_beside_a_text():
    torch.manual_seed(0)
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=16,
    )  # fmt: skip
    config = tf.LlavaConfig(
        vision_config=vision, text_config=text_config(), image_token_id=4, vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=4,
    )  # fmt: skip
    model = tf.LlavaForConditionalGeneration(config).double().eval()
    processor = tf.LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8}), tokenizer(),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    xmodel = lrp_fx.convert(model, processor=processor)
    asked = [{"role": "user", "content": [{"type": "image", "image": photo()}, {"type": "text", "text": "is it good"}]}]
    result = xmodel.explain(asked)
    assert set(result.relevance) == {"input_ids", "pixel_values"}
    assert result.tokens()[0].texts.count("<image>") == 4 and result.tokens()[0].texts[-2:] == ("<turn>", "assistant")
    assert result.plot("image", input="pixel_values") is not None
    beside = xmodel.explain(photo(), "<turn> user <image> is it good <end> <turn> assistant")
    close(beside.relevance["pixel_values"], result.relevance["pixel_values"])
    written = xmodel.explain_generation(asked, max_new_tokens=2, options={"suppress_tokens": [4]})
    assert written.relevance["pixel_values"].shape == (1, 2, 3, 8, 8)
    with pytest.raises(InputError, match="put images into the messages"):
        xmodel.explain(photo(), CHAT)


def test_raw_inputs_without_what_encodes_them():
    with pytest.raises(InputError, match=r"nothing encodes this image: lrp_fx.convert\(model, image_processor=\.\.\."):
        lrp_fx.convert(vit()).explain(photo())
    with pytest.raises(InputError, match=r"feature_extractor=\.\.\."):
        lrp_fx.convert(listener()).explain({"raw": tone().tolist(), "sampling_rate": 16000})
    xmodel = lrp_fx.convert(listener(), feature_extractor=tf.Wav2Vec2FeatureExtractor())
    with pytest.raises(InputError, match=r"needs its rate: explain\(array, sampling_rate=16000\)"):
        xmodel.explain(tone())
    with pytest.raises(InputError, match="no samples"):
        xmodel.explain({"array": [], "sampling_rate": 16000})
    with pytest.raises(InputError, match="give one channel"):
        xmodel.explain({"array": np.zeros((2, 100)), "sampling_rate": 16000})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", "text"), (CHAT, "chat"), ([CHAT, CHAT], "chat"), (photo(), "image"), ([photo()], "image"),
        (np.zeros((4, 4, 3), np.uint8), "image"), (np.zeros(4), "sound"), ({"array": [0.0], "sampling_rate": 8}, "sound"),
        (torch.zeros(3), None), (np.zeros((2, 3)), None), ([], None), ([1, 2], None), ({"role": "user"}, None), (3, None),
    ],
)  # fmt: skip
def test_kinds_of_raw_inputs(value, kind):
    assert kind_of(value) == kind
