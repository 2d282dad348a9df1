"""Ray 2.60: an Explainer is what actors of Ray Data are made of, and workers explain the shards of a run."""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from words import Dying, model, texts, tokenizer

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


def rows_of(folder):
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_run_by_two_workers_one_of_which_is_killed(cluster, tmp_path):
    data = [*texts(40), None]
    dying = Dying(model(), tokenizer=tokenizer())
    dying.mark = str(tmp_path / "killed")
    options = {"rows_per_shard": 8, "progress": False}
    made = lrp_fx.run(dying, data, out=tmp_path / "workers", ray="auto", workers=2, **options)
    assert (tmp_path / "killed").exists() and made.made == 41 and made.counts.failures == 1
    here = lrp_fx.Explainer(model(), tokenizer=tokenizer())
    alone = lrp_fx.run(here, data, out=tmp_path / "alone", **options)
    assert rows_of(tmp_path / "workers") == rows_of(tmp_path / "alone") and made.counts == alone.counts
    (tmp_path / "workers" / "part-00002.parquet").unlink()
    again = lrp_fx.run(here, data, out=tmp_path / "workers", **options)
    assert again.made == 8 and rows_of(tmp_path / "workers") == rows_of(tmp_path / "alone")
