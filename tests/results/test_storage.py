"""Results in files: whole when they are read, in every later version; hostile files are typed errors."""

import gzip
import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, LatentError
from lrp_fx.results import Attribution, Attributions, Context, Generation, Note, Tokens, no_ledger
from lrp_fx.results.weights_digest import model_fingerprint

HERE = Path(__file__).parent
SUFFIXES = [".safetensors", ".json.gz"]


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    found = lrp_fx.convert(model).explain(torch.tensor([[3, 1, 4], [1, 5, 9]]), target=1, at="1")
    tokens = (
        Tokens(
            ("[CLS]", "gut", "e"), (True, False, False), (False,) * 3, ((0, 0), (0, 3), (3, 4)), (None, 0, 0), "gute"
        ),
        Tokens(("[CLS]", "<b>", "[PAD]"), (True, False, True), (False, False, True), None, None, None),
    )
    context = Context(
        tokens=dict.fromkeys(found.relevance, tokens), labels=("no", "yes"), answers=("yes", "yes"), question="1",
        sampling_rate=8000.0, notes=(Note("cut off", "it was long"),), fingerprint=lambda: model_fingerprint(model),
    )  # fmt: skip
    return found.with_context(context)


def same(a, b):
    assert type(a) is type(b) and a.ruleset == b.ruleset and len(a) == len(b)
    for part in ("relevance", "latents", "inputs"):
        assert getattr(a, part).keys() == getattr(b, part).keys()
        assert all(
            torch.equal(getattr(a, part)[n], v) and getattr(a, part)[n].dtype == v.dtype
            for n, v in getattr(b, part).items()
        )
    assert torch.equal(a.target, b.target) and a.context == b.context
    assert a.context.fingerprint() == b.context.fingerprint()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_all_of_a_result(suffix, tmp_path):
    found = small()
    found.save(tmp_path / f"x{suffix}", output=True)
    for read in (lrp_fx.load_result, Attribution.load):
        copy = read(tmp_path / f"x{suffix}")
        same(copy, found)
        assert dict(copy.ledger) == dict(found.ledger) and copy.ledger.target == found.ledger.target
        assert torch.equal(copy.output, found.output) and [n.name for n in copy.notes] == [n.name for n in found.notes]
        assert copy.merge("words")[0].tokens()[0].texts[:2] == ("[CLS]", "gute")
    with pytest.raises(LatentError, match="read from a file"):
        copy.sources  # noqa: B018
    found[1].save(tmp_path / f"y{suffix}", inputs=False)
    one = lrp_fx.load_result(tmp_path / f"y{suffix}")
    assert not one.inputs and abs(one.ledger["input"] - float(one.total)) < 1e-12
    with pytest.raises(LatentError, match="read from a file"):
        one.output  # noqa: B018
    same(Attribution.load(one.save(tmp_path / f"z{suffix}")), one)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_is_kept_to_the_bit(suffix, dtype, tmp_path):
    values = torch.tensor([[1 / 3, -1e-7, float("inf"), -float("inf"), 3e4]]).to(dtype)
    made = Attribution(
        relevance={"x": values, "y": torch.empty(1, 0, dtype=dtype)}, latents={}, target=values[:, 0], ruleset="r",
        inputs={"mask": torch.tensor([[True, False]]), "ids": torch.tensor([[2**62]])}, _account=no_ledger("none here"),
    )  # fmt: skip
    copy = lrp_fx.load_result(made.save(tmp_path / f"x{suffix}"))
    same(copy, made)
    with pytest.raises(LatentError, match="none here"):
        copy.ledger  # noqa: B018


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_targets_and_generated_texts(suffix, tmp_path):
    many = Attributions(
        relevance={"ids": torch.randn(2, 3, 4)}, latents={}, target=torch.randn(2, 3), ruleset="r", names=("a", "b")
    )
    generation = Generation(
        sequences=torch.arange(10).reshape(2, 5), start=3, relevance={"ids": torch.randn(2, 2, 5)}, latents={},
        target=torch.randn(2, 2), ruleset="r", generated="ids",
    )  # fmt: skip
    for made in (many, generation):
        same(lrp_fx.load_result(made.save(tmp_path / f"x{suffix}")), made)
        assert lrp_fx.load_result(tmp_path / f"x{suffix}").target_names == ("a", "b") if made is many else True
    assert torch.equal(Generation.load(tmp_path / f"x{suffix}").sequences, generation.sequences)
    with pytest.raises(InputError, match="of the kind Generation, not Attribution"):
        Attribution.load(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_schema_1_is_read_for_ever(suffix):
    """Files that were written on 26 November 2026 (``small().save(..., output=True)``): never write them again."""
    read = Attribution.load(HERE / f"schema_1{suffix}")
    assert read.ruleset == "attnlrp" and read.context.labels == ("no", "yes") and read.context.question == "1"
    (name,) = read.relevance
    assert read.relevance[name].shape == (2, 3) and read.relevance[name].dtype is torch.float64
    assert read.tokens()[0].offsets == ((0, 0), (0, 3), (3, 4)) and read.tokens()[1].texts[1] == "<b>"
    assert read.inputs[name].tolist() == [[3, 1, 4], [1, 5, 9]] and read.output.shape == (2, 2)
    assert abs(read.ledger.target - float(read.target.sum())) < 1e-12 and read.ledger.balance < 1e-12
    assert abs(read.ledger["input"] - float(read.total.sum())) < 1e-12
    assert re.fullmatch("[0-9a-f]{64}", read.context.fingerprint()) and read.latents["1"].shape == (2, 3, 4)
    assert [n.name for n in read.context.notes] == ["cut off"] and read.context.sampling_rate == 8000


def document(path):
    return json.loads(gzip.decompress((HERE / "schema_1.json.gz").read_bytes()))


def changed(**changes):
    def make(path):
        path.write_bytes(gzip.compress(json.dumps(document(path) | changes).encode()))

    return make


def tensor_changed(**changes):
    def make(path):
        whole = document(path)
        whole["tensors"]["target"] |= changes
        path.write_bytes(gzip.compress(json.dumps(whole).encode()))

    return make


BAD_JSON = {
    "nothing in it": lambda path: path.write_bytes(b""),
    "no gzip": lambda path: path.write_bytes(b"{}"),
    "cut off": lambda path: path.write_bytes((HERE / "schema_1.json.gz").read_bytes()[:300]),
    "damaged": lambda path: path.write_bytes(gzip.compress(b"{}")[:12] + b"\xff" * 9),
    "no json": lambda path: path.write_bytes(gzip.compress(b"\x80pickle")),
    "a list": lambda path: path.write_bytes(gzip.compress(b"[]")),
    "deep": lambda path: path.write_bytes(gzip.compress(b"[" * 200_000)),
    "other json": lambda path: path.write_bytes(gzip.compress(b'{"tensors": {}}')),
    "another format": changed(format="something"),
    "schema": changed(schema="1"),
    "kind": changed(kind="__class__"),
    "no kind": changed(kind=["Attribution"]),
    "base": changed(kind="Several"),
    "rules": changed(rules=3),
    "tokens": changed(tokens={"0": [{"texts": ["a"], "special": [], "padding": []}]}),
    "other tokens": changed(tokens={"nowhere": []}),
    "token texts": changed(tokens={"input": [{"texts": [1], "special": [0], "padding": [0]}]}),
    "answers": changed(answers=["one"]),
    "labels": changed(labels="yes"),
    "notes": changed(notes=["x"]),
    "features": changed(features=[]),
    "ledger": changed(ledger={"target": "1", "entries": []}),
    "entries": changed(ledger={"target": 1.0, "entries": [["bias"]]}),
    "entry": changed(ledger={"target": 1.0, "entries": [["bias", "b", "r", "m", "n", None]]}),
    "no tensors": changed(tensors=3),
    "missing": changed(tensors={}),
    "dtype": tensor_changed(dtype="object"),
    "shape": tensor_changed(shape=[10**12]),
    "negative": tensor_changed(shape=[-2]),
    "values": tensor_changed(values=["x", "y"]),
    "rank": tensor_changed(shape=[1, 2]),
    "integers": tensor_changed(dtype="int64", values=[1, 2]),
    "huge": tensor_changed(dtype="int64", values=[10**40, 1]),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_what_is_no_result_is_refused_by_name(case, tmp_path):
    path = tmp_path / "x.json.gz"
    BAD_JSON[case](path)
    with pytest.raises(InputError, match=r"x\.json\.gz' is no saved result: "):
        lrp_fx.load_result(path)


def test_a_file_of_a_later_schema_says_so(tmp_path):
    changed(schema=2)(tmp_path / "x.json.gz")
    with pytest.raises(InputError, match="schema 2, and this version reads up to 1: update"):
        lrp_fx.load_result(tmp_path / "x.json.gz")


def test_what_unfolds_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lrp_fx.results.storage._LIMIT", 1000)
    with pytest.raises(InputError, match="unpacks to more"):
        lrp_fx.load_result(HERE / "schema_1.json.gz")


def test_other_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for metadata in (None, {"format": "pt"}, {"lrp_fx": "{"}, {"lrp_fx": "[" * 100_000}, {"lrp_fx": '{"format": 1}'}):
        save_file({"x": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(InputError, match="is no saved result"):
            lrp_fx.load_result(path)
    for contents in (b"", b"\xff" * 100, (HERE / "schema_1.safetensors").read_bytes()[:-9]):
        path.write_bytes(contents)
        with pytest.raises(InputError, match="is no saved result"):
            lrp_fx.load_result(path)
    with pytest.raises(InputError, match="no such file"):
        lrp_fx.load_result(tmp_path / "nowhere.safetensors")
    for name in ("x.pt", "x.json"):
        with pytest.raises(InputError, match=r"ends in \.safetensors or \.json\.gz"):
            lrp_fx.load_result(tmp_path / name)
        with pytest.raises(InputError, match="ends in"):
            Attribution.load(HERE / "schema_1.json.gz").save(tmp_path / name)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json.gz"
    path.write_bytes(b"before")
    made = Attribution.load(HERE / "schema_1.json.gz")
    with pytest.raises(InputError, match="complex"):
        made._derived(inputs={"z": torch.zeros(1, dtype=torch.complex64)}).save(path)
    with pytest.raises(TypeError):
        made.with_context(Context(question=object())).save(path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_files_are_the_same_each_time(tmp_path):
    made = Attribution.load(HERE / "schema_1.json.gz")
    a, b = (made.save(tmp_path / name).read_bytes() for name in ("a.json.gz", "b.json.gz"))
    assert a == b and zlib.crc32(a)


def test_a_fingerprint_tells_models_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50))
    before = model_fingerprint(model)
    assert before == model_fingerprint(model)
    with torch.no_grad():
        model[0].weight += 1e-3
    after = model_fingerprint(model)
    assert len({before, after, model_fingerprint(model.double()), model_fingerprint(model[0])}) == 4
    assert model_fingerprint(nn.Linear(2, 2, device="meta")) == model_fingerprint(nn.Linear(2, 2, device="meta"))
