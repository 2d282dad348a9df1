"""Data sets of Hugging Face: batches of a map, and a saved one as data."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from words import model, texts, tokenizer

import lrp_fx


def pixels(image):
    return torch.tensor(np.array(image), dtype=torch.float32).permute(2, 0, 1) / 255


def test_an_explainer_maps_a_data_set():
    rows = datasets.Dataset.from_dict({"review": texts(12), "label": list(range(12))})
    explainer = lrp_fx.Explainer(model(), tokenizer=tokenizer(), text="review")
    made = rows.map(explainer, batched=True, batch_size=5)
    assert made.num_rows == 12 and made[3]["label"] == 3 and made[3]["error"] is None
    one = lrp_fx.convert(model(), tokenizer=tokenizer()).explain(rows[3]["review"])
    np.testing.assert_allclose(made[3]["relevance"], one.relevance["input_ids"][0].detach(), rtol=1e-3, atol=1e-6)
    assert made[3]["tokens"] == list(one.tokens()[0].texts)


def test_a_saved_data_set_is_data(tmp_path):
    datasets.Dataset.from_dict({"text": texts(20)}).save_to_disk(tmp_path / "saved", num_shards=2)
    lrp_fx.run(
        lrp_fx.Explainer(model(), tokenizer=tokenizer()), tmp_path / "saved", out=tmp_path / "out", progress=False
    )
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_table(path).column("text").to_pylist() == texts(20)


def test_a_saved_data_set_of_images_is_data(tmp_path):
    images = [Image.fromarray(np.full((4, 4, 3), shade, np.uint8)) for shade in (0, 90, 200)]
    rows = datasets.Dataset.from_dict({"picture": images}, features=datasets.Features({"picture": datasets.Image()}))
    rows.save_to_disk(tmp_path / "saved")
    net = nn.Sequential(nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).eval()
    explainer = lrp_fx.Explainer(net, image_processor=pixels, image="picture")
    lrp_fx.run(explainer, tmp_path / "saved", out=tmp_path / "out", progress=False)
    (path,) = (tmp_path / "out").glob("*.parquet")
    saved = pq.read_table(path).to_pylist()
    mapped = rows.map(explainer, batched=True, remove_columns=["picture"])
    for row, other in zip(saved, mapped, strict=True):
        assert row["error"] is None and row["shape"] == other["shape"] == [4, 4]
        np.testing.assert_allclose(row["relevance"], other["relevance"], rtol=1e-5)
