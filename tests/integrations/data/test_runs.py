"""Whole data sets: what is in the shards, resuming, failures, formats, batches."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner
from words import model, texts, tokenizer

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.runs.batching import Limits, batches, padding_of

PADDING = 0.1
QUIET = {"progress": False, "rows_per_shard": 16}


@pytest.fixture(scope="module")
def explainer():
    return lrp_fx.Explainer(model(), tokenizer=tokenizer())


def rows_of(folder):
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_rows_are_what_explain_says_of_each_text(explainer, tmp_path):
    data = texts(40)
    made = lrp_fx.run(explainer, data, out=tmp_path / "run", **QUIET)
    rows = rows_of(tmp_path / "run")
    assert [row["row"] for row in rows] == list(range(40)) and [row["text"] for row in rows] == data
    assert made.counts.rows == made.made == 40 and made.counts.failures == 0 and made.padding < PADDING
    xmodel = lrp_fx.convert(model(), tokenizer=tokenizer())
    for row in (rows[0], rows[17], rows[39]):
        one = xmodel.explain(row["text"])
        assert row["tokens"] == list(one.tokens()[0].texts) and row["special"] == list(one.tokens()[0].special)
        np.testing.assert_allclose(row["relevance"], one.relevance["input_ids"][0].detach(), rtol=1e-3, atol=1e-6)
        assert row["target"] == pytest.approx(float(one.target), rel=1e-4, abs=1e-7) and row["prediction"] in (
            "bad",
            "good",
        )
        assert sum(row["relevance"]) + row["absorbed"] == pytest.approx(row["target"], abs=1e-5)
        assert row["ledger"] is None and row["error"] is None
    frame = pd.read_parquet(tmp_path / "run")
    assert list(frame["text"]) == data and frame["relevance"][17].tolist() == rows[17]["relevance"]
    manifest = json.loads((tmp_path / "run" / "_manifest.json").read_text())
    assert manifest["finished"] and manifest["rows"] == 40 and set(manifest["columns"]) == set(rows[0])
    assert len(list((tmp_path / "run").glob("part-*.parquet"))) == 3


def test_a_ledger_for_each_row_and_half_precision(tmp_path):
    explainer = lrp_fx.Explainer(model(), tokenizer=tokenizer(), ledger=True, target="contrast")
    lrp_fx.run(explainer, texts(5), out=tmp_path, precision="float16", **QUIET)
    for row in rows_of(tmp_path):
        assert sum(dict(row["ledger"]).values()) == pytest.approx(row["target"], abs=1e-4)
        assert row["prediction"].endswith("rather than all others")
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_schema(path).field("relevance").type == pa.list_(pa.float16())


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import lrp_fx
from words import model, texts, tokenizer

class Dying(lrp_fx.Explainer):
    batches = 0
    def explain(self, rows):
        self.batches += 1
        if self.batches == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().explain(rows)

made = lrp_fx.run(Dying(model(), tokenizer=tokenizer()), {data!r}, out=sys.argv[1], progress=False, rows_per_shard=16)
print(made.made)
"""


def test_a_run_that_was_killed_twice_goes_on_without_a_lost_or_doubled_row(tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts(70)) + "\n")
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(here=str(Path(__file__).parents[2]), data=str(data)))

    def started(out, dies_at):
        command = [sys.executable, "-W", "ignore", str(script), str(out), str(dies_at)]
        return subprocess.run(command, capture_output=True, text=True)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = started(killed, 12)
    assert first.returncode == -signal.SIGKILL, first.stderr[-2000:]
    there = sorted(p.name for p in killed.glob("part-*"))
    assert 0 < len(there) < 5
    (killed / ".part-00004.1234abcd.parquet").write_text("half a shard")
    assert started(killed, 9).returncode == -signal.SIGKILL
    last = started(killed, -1)
    assert last.returncode == 0, last.stderr[-2000:]
    assert 0 < int(last.stdout) < 70 - 16 * len(there) + 1
    made = lrp_fx.run(lrp_fx.Explainer(model(), tokenizer=tokenizer()), data, out=whole, **QUIET)
    assert made.made == 70 and rows_of(killed) == rows_of(whole) and len(rows_of(killed)) == 70
    assert not list(killed.glob(".part*"))
    again = lrp_fx.run(lrp_fx.Explainer(model(), tokenizer=tokenizer()), data, out=whole, **QUIET)
    assert again.made == 0 and again.counts == made.counts


def test_a_folder_of_another_run_is_refused(explainer, tmp_path):
    lrp_fx.run(explainer, ["w1 w2"], out=tmp_path, **QUIET)
    other = lrp_fx.Explainer(model(), tokenizer=tokenizer(), target=1, rules="attnlrp")
    with pytest.raises(InputError, match="another rules, rules digest, target"):
        lrp_fx.run(other, ["w1 w2"], out=tmp_path, **QUIET)
    changed = model()
    torch.nn.init.zeros_(changed.classifier.weight)
    with pytest.raises(InputError, match="another weights"):
        lrp_fx.run(changed, ["w1 w2"], out=tmp_path, tokenizer=tokenizer(), **QUIET)
    (tmp_path / "_manifest.json").unlink()
    with pytest.raises(InputError, match=r"has shards, and no _manifest\.json"):
        lrp_fx.run(explainer, ["w1 w2"], out=tmp_path, **QUIET)


def test_two_runs_do_not_write_to_one_folder(explainer, tmp_path):
    def texts_of_another_run():
        with pytest.raises(InputError, match="another run writes"):
            lrp_fx.run(explainer, ["w1"], out=tmp_path, **QUIET)
        yield "w1"

    assert lrp_fx.run(explainer, texts_of_another_run(), out=tmp_path, **QUIET).counts.rows == 1


def test_rows_that_fail_are_kept_with_their_errors(explainer, tmp_path):
    class Fragile(lrp_fx.Explainer):
        @property
        def xmodel(self):
            real = explainer.xmodel

            class Sometimes:
                model, encoder = real.model, real.encoder

                @staticmethod
                def explain(texts, **options):
                    if any("w7" in text.text.split() for text in texts):
                        raise RuntimeError("seven")
                    return real.explain(texts, **options)

            return Sometimes

    fragile = Fragile(model(), tokenizer=tokenizer())
    data = [{"text": text} for text in [*texts(30), "w7", "w1 w7", "w2"]] + [{"text": None}, {"other": 1}]
    made = lrp_fx.run(fragile, data, out=tmp_path, **QUIET)
    rows = rows_of(tmp_path)
    assert len(rows) == 35
    for row in rows[:33]:
        failed = "w7" in row["text"].split()
        assert (row["error"] == "RuntimeError: seven") is failed and (row["relevance"] is None) is failed
    assert rows[33]["error"] == "InputError: no text: None" and "no column 'text'" in rows[34]["error"]
    assert made.counts.failures == sum(row["error"] is not None for row in rows) >= 4


def test_texts_that_are_too_long_say_so(explainer, tmp_path):
    lrp_fx.run(explainer, [" ".join(["w1"] * 80), "w2"], out=tmp_path, **QUIET)
    long, short = rows_of(tmp_path)
    assert "cut off" in long["notes"] and len(long["tokens"]) == 48 and "cut off" not in short["notes"]


def written(folder, kind, rows):
    path = folder / f"data{kind}"
    frame = pd.DataFrame({"review": rows, "label": range(len(rows))})
    if kind in (".csv", ".tsv"):
        frame.to_csv(path, sep="," if kind == ".csv" else "\t", index=False, quoting=csv.QUOTE_ALL)
    elif kind == ".jsonl":
        path.write_text("\n".join(json.dumps({"review": row}) for row in rows) + "\nno json\n")
    elif kind == ".parquet":
        pq.write_table(pa.table({"review": rows}), path)
    elif kind == ".arrow":
        table = pa.table({"review": rows})
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow"])
def test_formats(kind, explainer, tmp_path):
    rows = ["w1 w2, w3", 'w4 "w5"\nw6']
    named = lrp_fx.Explainer(model(), tokenizer=tokenizer(), text="review")
    named.__dict__["xmodel"] = explainer.xmodel
    lrp_fx.run(named, written(tmp_path, kind, rows), out=tmp_path / "out", **QUIET)
    made = rows_of(tmp_path / "out")
    assert [row["review"] for row in made][:2] == rows and all(row["error"] is None for row in made[:2])
    assert [row["error"][:19] for row in made[2:]] == (["InputError: no JSON"] if kind == ".jsonl" else [])
    with pytest.raises(InputError, match="no column 'text': there are review"):
        lrp_fx.run(explainer, tmp_path / f"data{kind}", out=tmp_path / "other", **QUIET)


def test_files_of_other_programs(explainer, tmp_path):
    """A byte order mark, other ends of lines, empty lines, bytes of another encoding."""
    contents = {
        "a.csv": b'\xef\xbb\xbftext,stars\r\n"w1 w2\r\nw3",4\r\nw4 \xe9,1\r\n',
        "b.txt": b"\xef\xbb\xbfw1 w2\r\nw3 \xe9\r\n",
        "c.jsonl": b'\xef\xbb\xbf{"text": "w1 w2"}\r\n\r\n{"text": "w3 \xe9"}\r\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        lrp_fx.run(explainer, tmp_path / name, out=tmp_path / f"out {name}", **QUIET)
        first, second = rows_of(tmp_path / f"out {name}")
        assert first["text"].startswith("w1 w2") and first["error"] is None
        assert second["text"] is None and second["error"] == "InputError: no text in UTF-8"
    with pytest.raises(InputError, match="no data: 5"):
        lrp_fx.run(explainer, 5, out=tmp_path / "five", **QUIET)


def test_folders_data_frames_and_pairs(explainer, tmp_path):
    (tmp_path / "many").mkdir()
    for name, line in (("b.txt", "w2"), ("a.txt", "w1")):
        (tmp_path / "many" / name).write_text(line + "\n")
    lrp_fx.run(explainer, tmp_path / "many", out=tmp_path / "out", **QUIET)
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["w1", "w2"]
    pairs = lrp_fx.Explainer(model(), tokenizer=tokenizer(), text=("premise", "claim"))
    frame = pd.DataFrame({"premise": ["w1 w2", "w3"], "claim": ["w4", None]})
    lrp_fx.run(pairs, frame, out=tmp_path / "pairs", **QUIET)
    good, bad = rows_of(tmp_path / "pairs")
    assert good["tokens"] == ["[CLS]", "w1", "w2", "[SEP]", "w4", "[SEP]"] and good["claim"] == "w4"
    assert bad["error"].startswith("InputError: no text") and bad["premise"] == "w3" and bad["claim"] is None
    with pytest.raises(InputError, match="no data at"):
        lrp_fx.run(explainer, tmp_path / "nothing.txt", out=tmp_path / "n", **QUIET)


def test_an_explainer_serves_batches_of_columns_and_other_processes(tmp_path):
    saved = tmp_path / "model"
    model().save_pretrained(saved)
    tokenizer().save_pretrained(saved)
    import pickle

    explainer = pickle.loads(pickle.dumps(lrp_fx.Explainer(saved, rules="attnlrp")))
    columns = explainer({"text": np.array(["w1 w2", "w3"], dtype=object)})
    assert list(columns["text"]) == ["w1 w2", "w3"]
    assert columns["tokens"] == [["[CLS]", "w1", "w2", "[SEP]"], ["[CLS]", "w3", "[SEP]"]]
    assert columns["prediction"][0] in ("bad", "good") and columns["error"] == [None, None]
    assert "xmodel" not in pickle.loads(pickle.dumps(explainer)).__dict__
    with pytest.raises(InputError, match="every row"):
        lrp_fx.Explainer(saved, target=torch.tensor([0, 1]))


def test_the_command_line(tmp_path):
    from lrp_fx.cli.main import app

    saved, data = tmp_path / "model", tmp_path / "texts.txt"
    model().save_pretrained(saved)
    tokenizer().save_pretrained(saved)
    data.write_text("w1 w2\nw3\n")
    command = ["run", str(saved), str(data), "--out", str(tmp_path / "out"), "--target", "1", "--half"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "2 rows in" in done.output and [row["text"] for row in rows_of(tmp_path / "out")] == ["w1 w2", "w3"]
    assert "0 explained now" in CliRunner().invoke(app, command).output


@pytest.mark.parametrize("seed", range(5))
def test_batches_hold_every_row_once_and_little_padding(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.geometric(0.05, size=500).tolist()
    made = batches(lengths, Limits(32, 1000, PADDING))
    assert sorted(i for batch in made for i in batch) == list(range(500))
    for batch in made:
        padding, size = padding_of(batch, lengths)
        assert padding <= PADDING * size and len(batch) <= 32 and (size <= 1000 or len(batch) == 1)
    assert len(made) < 100
