"""Images and sounds as data: folders, columns of tables with bytes of files, failures, relevance inside the model."""

import io
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as tf
from PIL import Image
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.runs.data_files import kind_of_data

RATE = 8000


def pixels(image):
    return torch.tensor(np.array(image), dtype=torch.float32).permute(2, 0, 1) / 255


def rows_of(folder):
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three images in folders by class, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.PNG", "dog/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(folder / name)
    (folder / "dog/broken.jpg").write_bytes(b"no image")
    (folder / "metadata.csv").write_text("file_name,text\ncat/a.png,a cat\n")
    return folder


@pytest.fixture(scope="module")
def sees():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4 * 6, 2)).eval()
    return lrp_fx.Explainer(net, image_processor=pixels, labels=["cat", "dog"], image="image", at="0")


def test_a_folder_of_images(sees, pictures, tmp_path):
    made = lrp_fx.run(sees, pictures, out=tmp_path, progress=False)
    rows = rows_of(tmp_path)
    assert [row["image"].removeprefix(f"{pictures}/") for row in rows] == [
        "cat/a.png", "cat/b.PNG", "dog/broken.jpg", "dog/c.png"
    ]  # fmt: skip
    assert made.counts.failures == 1 and "cannot be read as an image" in rows[2]["error"]
    assert "1 x InputError: " in str(made) and rows[2]["relevance"] is None
    one = sees.xmodel.explain(pixels(Image.open(pictures / "dog/c.png"))[None], at="0")
    assert rows[3]["shape"] == [6, 8] and rows[3]["tokens"] is None and rows[3]["prediction"] in ("cat", "dog")
    (relevance,) = one.relevance.values()
    np.testing.assert_allclose(rows[3]["relevance"], relevance[0].sum(0).flatten(), rtol=1e-4, atol=1e-6)
    ((name, neurons),) = rows[3]["latents"]
    assert name == "0"
    np.testing.assert_allclose(neurons, one.latents["0"][0].sum((1, 2)), rtol=1e-4, atol=1e-6)
    assert sum(rows[3]["relevance"]) + rows[3]["absorbed"] == pytest.approx(rows[3]["target"], abs=1e-5)
    assert kind_of_data(pictures) == "image"


def test_columns_with_bytes_of_files(sees, pictures, tmp_path):
    content = [{"bytes": (pictures / name).read_bytes(), "path": name} for name in ("cat/a.png", "dog/broken.jpg")]
    pq.write_table(
        pa.table({"image": [*content, {"bytes": None, "path": str(pictures / "dog/c.png")}, None]}),
        tmp_path / "data.parquet",
    )
    lrp_fx.run(sees, tmp_path / "data.parquet", out=tmp_path / "out", progress=False)
    good, broken, other, none = rows_of(tmp_path / "out")
    assert good["error"] is None and good["image"] == "cat/a.png" and other["error"] is None
    assert "the content cannot be read as an image" in broken["error"] and none["error"] == "InputError: no image: None"
    (again,) = sees({"image": [Image.open(pictures / "cat/a.png")]})["relevance"]
    np.testing.assert_allclose(good["relevance"], again, rtol=1e-4, atol=1e-7)


def wav(path, seconds, rate=RATE):
    values = (np.sin(np.arange(int(seconds * rate)) * 0.3) * 20000).astype("<i2")
    with wave.open(str(path) if not isinstance(path, io.BytesIO) else path, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    return values / 2**15


class Hears(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(1, 4, 9, stride=4), nn.Linear(4, 2)

    def forward(self, input_values):
        return self.head(self.conv(input_values[:, None]).relu().mean(-1))


def test_a_folder_of_sounds_of_several_lengths(tmp_path):
    extractor = tf.Wav2Vec2FeatureExtractor(1, RATE, 0.0, do_normalize=False, return_attention_mask=False)
    hears = lrp_fx.Explainer(Hears().eval(), feature_extractor=extractor, sound="sound")
    seconds = (0.02, 0.03, 0.02)
    (tmp_path / "data").mkdir()
    waves = [wav(tmp_path / "data" / f"{i}.wav", s) for i, s in enumerate(seconds)]
    made = lrp_fx.run(hears, tmp_path / "data", out=tmp_path / "out", progress=False)
    rows = rows_of(tmp_path / "out")
    assert [row["shape"] for row in rows] == [[int(s * RATE)] for s in seconds] and made.padding == 0
    for row, values in zip(rows, waves, strict=True):
        one = hears.xmodel.explain(torch.tensor(values, dtype=torch.float32)[None])
        np.testing.assert_allclose(row["relevance"], one.relevance["input_values"][0], rtol=1e-4, atol=1e-7)
    content = io.BytesIO()
    wav(content, 0.03)
    columns = hears(
        {"sound": [{"bytes": content.getvalue(), "path": None}, {"array": waves[0], "sampling_rate": RATE}, waves[0]]}
    )
    np.testing.assert_allclose(columns["relevance"][0], rows[1]["relevance"], rtol=1e-5)
    np.testing.assert_allclose(columns["relevance"][1], rows[0]["relevance"], rtol=1e-5)
    assert "needs its rate" in columns["error"][2]


def test_a_column_of_a_kind_that_the_model_does_not_read(sees, tmp_path):
    with pytest.raises(InputError, match=r"texts need their encoder: Explainer\(model, tokenizer="):
        lrp_fx.run(sees.xmodel.model, ["a text"], out=tmp_path, progress=False)
    with pytest.raises(InputError, match="text and image are two kinds"):
        lrp_fx.Explainer(nn.Linear(2, 2), text="text", image="image")
