"""Data sets of Hugging Face: batches of a map, and a saved one as data."""

import datasets
import numpy as np
import pyarrow.parquet as pq
from words import model, texts, tokenizer

import lrp_fx


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
