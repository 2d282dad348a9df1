"""Results as data of the viewer, without a browser: what is in it adds up, and what cannot be in it is told."""

import base64
import json
import struct
import zlib

import pytest
import torch
from viewed import HOSTILE, batch, generation, image, several, sound, spectrogram, table, text, translation

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.results import viewer_data
from lrp_fx.viz.viewer.encode import unpack


def sample(result, number=0, **options):
    return viewer_data(result, "a name", **options)["samples"][number]


@pytest.mark.parametrize("make", [text, batch, several, generation, translation, image, sound, spectrogram, table])
def test_data_is_plain_and_the_inputs_keep_their_sum(make):
    result = make()
    data = viewer_data(result, "a name")
    assert json.loads(json.dumps(data, allow_nan=False))["name"] == "a name"
    for number, one in enumerate(result):
        shown = data["samples"][number]
        assert len(shown["targets"]) == len(one.target.flatten())
        for entry, value in zip(shown["targets"], one.target.flatten().tolist(), strict=True):
            assert entry["value"] == value
        for input_, relevance in zip(shown["inputs"], one.relevance.values(), strict=True):
            values = unpack(input_["relevance"])
            wanted = relevance.reshape(len(values), -1).sum(1)
            assert torch.allclose(torch.tensor(values).double().reshape(len(values), -1).sum(1), wanted, atol=1e-5)


def test_the_ledger_adds_up_to_the_target():
    shown = sample(text())
    assert abs(sum(amount for _, amount in shown["ledger"]) - shown["targets"][0]["value"]) < 1e-12
    inputs = unpack(shown["inputs"][0]["relevance"]).sum()
    assert abs(dict(shown["ledger"])["input"] - inputs) < 1e-6


def test_what_has_no_ledger_says_why():
    assert sample(batch())["ledger"] is None and sample(batch())["no_ledger"] == "nobody computed it"
    assert "explain(target=...)" in sample(several())["no_ledger"]
    assert "ledger=False" in sample(text(), ledger=False)["no_ledger"]


def test_words_hold_the_pieces_and_no_padding():
    words = sample(text())["inputs"][0]["words"]
    assert words["texts"] == ["[CLS]", "unbelievable", HOSTILE, "film", "[SEP]"]
    assert words["of"] == [0, 1, 1, 1, 2, 3, 4, -1] and words["special"] == [0, 4]


def test_no_word_reaches_from_the_prompt_into_what_was_generated():
    shown = sample(generation())["inputs"][0]
    assert shown["start"] == 2 and shown["words"]["of"] == [0, 1, 2, 3, 3]
    assert [t["name"] for t in sample(generation())["targets"]] == ["sat", "un", "##done"]
    one = generation()
    context = one.context.__class__(tokens={"ids": (one.tokens()[0].plain([" the", " ca", "t", "s", " so"]),)})
    assert sample(one.with_context(context))["inputs"][0]["words"]["of"] == [0, 1, 2, 2, 3]
    encoder, decoder = sample(translation())["inputs"]
    assert "start" not in encoder and decoder["start"] == 2


def test_lines_begin_where_the_text_has_them():
    one = text(("a", "b", "c"), [1.0, 2.0, 3.0])
    told = lrp_fx.results.Tokens(("a", "b", "c"), (False,) * 3, (False,) * 3, ((0, 1), (2, 3), (4, 5)), None, "a b\nc")
    shown = sample(one.with_context(one.context.__class__(tokens={"ids": (told,)})))["inputs"][0]
    assert shown["breaks"] == [2] and shown["words"]["breaks"] == [2]


def test_an_image_is_a_png_of_its_pixels():
    shown = sample(image())["inputs"][0]
    assert shown["kind"] == "map" and unpack(shown["relevance"]).shape == (1, 8, 8)
    assert unpack(shown["relevance"])[0, 0, 0] == 3.0
    data = base64.b64decode(shown["picture"].removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (8, 8)
    length = struct.unpack(">I", data[33:37])[0]
    rows = zlib.decompress(data[41 : 41 + length])
    assert len(rows) == 8 * (1 + 3 * 8) and rows[1] == 0 and rows[-1] == 255  # the least is black, the largest white
    assert sample(image().without_inputs())["inputs"][0]["picture"] is None


def test_sound_is_a_wav_and_stretches_of_it():
    shown = sample(sound())["inputs"][0]
    data = base64.b64decode(shown["player"].removeprefix("data:audio/wav;base64,"))
    assert data[:4] == b"RIFF" and struct.unpack("<I", data[24:28]) == (8000,) and len(data) == 44 + 2 * 4000
    values = unpack(shown["relevance"])[0]
    assert shown["seconds"] == 0.5 and values[: len(values) // 2].sum() == 0 and abs(values.sum() - 1) < 1e-6
    assert (unpack(shown["low"]) <= unpack(shown["high"])).all()
    assert shown["spectrogram"].startswith("data:image/png")


def test_low_frequencies_of_a_spectrogram_are_below():
    shown = sample(spectrogram())["inputs"][0]
    values = unpack(shown["relevance"])[0]
    assert shown["upwards"] and values[-1, 0] == 1.5 and values.sum() == 1.5 and shown["picture"]
    assert not sample(image())["inputs"][0]["upwards"]


def test_series_run_across():
    steps = lrp_fx.convert(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 1))).explain(
        torch.ones(1, 20, 3)
    )
    shown = sample(steps)["inputs"][0]
    assert unpack(shown["relevance"]).shape == (1, 3, 20) and "from left to right" in shown["caption"]
    assert (unpack(shown["relevance"])[0] == steps.relevance["input"][0].T.numpy()).all()


def test_layers_and_heads_are_rows_without_padding():
    latents = {
        "layers.10": torch.ones(1, 8, 3), "layers.2": torch.full((1, 8, 3), 2.0),  # of every token
        "layers.2.heads@probabilities": torch.ones(1, 2, 8, 8), "layers.2.heads@mixed": torch.ones(1, 8, 2, 4),
        "head": torch.ones(1, 5),
    }  # fmt: skip
    whole, rest = sample(text(latents=latents))["matrices"]
    names = [f"layers.2.heads@{p} [{h}]" for p in ("mixed", "probabilities") for h in (0, 1)]
    assert whole["rows"] == ["layers.2", *names, "layers.10"] and len(whole["columns"]) == 7
    values = unpack(whole["relevance"])
    assert values.shape == (1, 6, 7) and values[0, :, 0].tolist() == [6, 4, 4, 8, 8, 3]
    assert rest["rows"] == ["head"] and unpack(rest["relevance"]).tolist() == [[[5.0]]]


def test_neurons_that_are_chosen_get_rows():
    torch.manual_seed(0)
    latent = torch.randn(1, 8, 5).double()
    one = text(latents={"layers.1": latent, "layers.2": torch.ones(1, 8, 3)})
    shown = [i for i, padding in enumerate(one.tokens()[0].padding) if not padding]
    (matrix,) = viewer_data(one, "r", neurons={"layers.1": [3, -1]})["samples"][0]["matrices"]
    assert matrix["rows"] == ["layers.1", "layers.1 neuron 3", "layers.1 neuron 4", "layers.2"]
    values = torch.tensor(unpack(matrix["relevance"]))[0]
    assert float((values[1:3] - latent[0, shown][:, [3, 4]].T).abs().max()) < 1e-6
    (matrix,) = viewer_data(one, "r", neurons=1)["samples"][0]["matrices"]
    assert matrix["rows"][1] == f"layers.1 neuron {int(latent.abs().sum((0, 1)).argmax())}" and len(matrix["rows"]) == 4
    with pytest.raises(InputError, match=r"layers\.1 has no neuron 5: it has 5"):
        viewer_data(one, "r", neurons={"layers.1": [5]})


def test_what_is_not_a_number_is_none():
    one = text(numbers=[0.1, float("nan"), 0, 0, 0, 0, 0, 0])
    assert sample(one, ledger=False)["targets"][0]["value"] is None


def test_real_results_are_viewed(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(20, 6), torch.nn.Flatten(), torch.nn.Linear(30, 3)).double()
    result = lrp_fx.convert(model).explain(torch.arange(10).reshape(2, 5), at="2")
    path = result.view(tmp_path / "deep" / "a.html")
    assert path == tmp_path / "deep" / "a.html" and "<!doctype html>" in path.read_text()
    shown = sample(result, 1)
    assert shown["inputs"][0]["tokens"] == ["5", "6", "7", "8", "9"] and shown["ledger"]
    assert abs(sum(a for _, a in shown["ledger"]) - float(result.target[1])) < 1e-9


def test_views_have_names(tmp_path):
    page = lrp_fx.view(text(), text(), path=tmp_path / "a.html", names=["before", "after"], title="An edit").read_text()
    assert '"name":"before"' in page and '"name":"after"' in page and "<title>An edit</title>" in page
    assert "Why positive?" in text().view(tmp_path / "b.html").read_text()
    alike = lrp_fx.view(text(), text(), text(), path=tmp_path / "d.html").read_text()
    assert all(alike.count(f'"name":"{name}"') == 1 for name in ("attnlrp", "attnlrp (2)", "attnlrp (3)"))
    with pytest.raises(InputError, match="1 names for 2 results"):
        lrp_fx.view(text(), text(), path=tmp_path / "c.html", names=["before"])
    with pytest.raises(InputError, match="nothing to view"):
        lrp_fx.view(path=tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()
