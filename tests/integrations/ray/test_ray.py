"""Ray Data 2.60: an Explainer is what its actors are made of."""

import sys
from pathlib import Path

import numpy as np
import pytest
import ray

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from words import model, texts, tokenizer

import lrp_fx


@pytest.fixture(scope="module")
def cluster():
    paths = [p for p in sys.path if p]
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )  # fmt: skip
    yield
    ray.shutdown()


def test_two_actors_explain_what_one_process_does(cluster, tmp_path):
    model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    rows = [{"row": i, "text": text} for i, text in enumerate([*texts(30), ""])]
    made = ray.data.from_items(rows).map_batches(
        lrp_fx.Explainer, fn_constructor_args=(str(tmp_path),), concurrency=2, batch_size=8
    )  # fmt: skip
    found = {row["text"]: row for row in made.take_all()}
    assert len(found) == 31
    here = lrp_fx.Explainer(tmp_path)
    for text in (rows[0]["text"], rows[17]["text"], ""):
        (expected,) = here.explain([text])
        assert list(found[text]["tokens"]) == expected["tokens"] and found[text]["error"] == expected["error"]
        np.testing.assert_allclose(found[text]["relevance"], expected["relevance"], rtol=1e-3, atol=1e-6)
