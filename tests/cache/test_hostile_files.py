"""Reading a file runs no code: not a saved graph, not an entry of the cache, whatever they name."""

import io
import json
import os
import pickle
import sys
import warnings
import zipfile

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.cache import store
from lrp_fx.cache.safe_names import attribute, harmless, identifier, needs_import, structure
from lrp_fx.cache.safe_names import operator as operator_named
from lrp_fx.errors import InputError, LrpError, TargetError, UnsafeFileError

X = torch.linspace(-1, 1, 8).view(2, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.linear(x))


def layers():
    """Classes of an installed package alone: their fingerprint is the same all over."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()


class Touch:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "good.pt2"
    lrp_fx.convert(Net().eval(), X).save(path, X, target=1)
    return path


def changed(path, changes, more=()):
    """A copy of an archive with other records."""
    out = path.with_name("bad.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.split("/", 1)[1], old.read(name)))
        for name, data in more:
            new.writestr(f"archive/{name}", data)
    return out


def about(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("archive/extra/lrp_fx.json"))


def told_otherwise(path, change):
    document = about(path)
    change(document)
    return changed(path, {"extra/lrp_fx.json": json.dumps(document)})


def pickled(mark):
    buffer = io.BytesIO()
    torch.save((Touch(mark),), buffer)
    return buffer.getvalue()


def test_a_saved_graph_holds_no_pickle(saved):
    with zipfile.ZipFile(saved) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist()}
        assert sizes["archive/data/sample_inputs/model.pt"] == 0
        assert not [n for n in archive.namelist() if archive.read(n)[:2] == b"\x80\x02"]
    assert torch.export.load(saved).module()(X, torch.ones(2, dtype=torch.long))["target"].shape == (2,)


PICKLES = [
    "data/sample_inputs/model.pt",
    "data/weights/model.pt",
    "data/constants/model.pt",
    "data/constants/opaque_obj_0",
]


@pytest.mark.parametrize("record", PICKLES)
def test_a_pickle_in_a_saved_graph_is_refused(record, saved, tmp_path):
    held = record == PICKLES[0]
    data = pickled(tmp_path / "mark")
    bad = changed(saved, {record: data} if held else {}, [] if held else [(record, data)])
    with pytest.raises(UnsafeFileError, match="pickle"):
        lrp_fx.load(bad)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_a_pickled_tensor_is_refused(kind, saved, tmp_path):
    record = f"data/{kind}/model_{kind}_config.json"
    form = {"path_name": "tensor_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
    more = [("data/constants/tensor_0", pickled(tmp_path / "mark"))]
    with pytest.raises(UnsafeFileError, match="is a pickle"):
        lrp_fx.load(changed(saved, {record: json.dumps({"config": {"linear.weight": form}})}, more))
    assert not (tmp_path / "mark").exists()


def test_files_of_another_kind_are_no_graphs(tmp_path):
    (tmp_path / "a.pt2").write_bytes(pickle.dumps(Touch(tmp_path / "mark")))
    (tmp_path / "b.pt2").write_bytes(pickled(tmp_path / "mark"))
    torch.export.save(torch.export.export(Net(), (X,)), tmp_path / "c.pt2")
    for path in (*(tmp_path / f"{n}.pt2" for n in "abc"), tmp_path, tmp_path / "missing.pt2"):
        with pytest.raises(InputError, match="no saved relevance graph"):
            lrp_fx.load(path)
    assert not (tmp_path / "mark").exists()


def first_call(nodes):
    return next(n for n in nodes if n[0] == "call_function")


CODE = "x=__import__('os').mkdir({!r})"
HOSTILE = {
    "an input": lambda d, code: d["graph"][0].__setitem__(2, code),
    "a node": lambda d, code: first_call(d["graph"]).__setitem__(1, code),
    "a keyword": lambda d, code: first_call(d["graph"])[4].update(dict=[[code, 1]]),
    "a default": lambda d, code: d["graph"][0][3].append(code),
    "a symbol": lambda d, code: d["symbols"][0].__setitem__(0, code),
    "a dtype": lambda d, code: d["dtypes"].update(x="hub"),
    "a function": lambda d, code: first_call(d["graph"]).__setitem__(2, "builtins.eval"),
    "a file operator": lambda d, code: first_call(d["graph"]).__setitem__(2, ["aten::from_file", ""]),
    "a TorchScript operator": lambda d, code: first_call(d["graph"]).__setitem__(2, ["aten::save", ""]),
    "a method of torch.ops": lambda d, code: first_call(d["graph"]).__setitem__(2, ["load_library::x", ""]),
    "a writing operator": lambda d, code: first_call(d["graph"]).__setitem__(2, ["aten::add_", "Tensor"]),
    "an attribute of Python": lambda d, code: d["tensors"].update({"__class__.__init__": "linear.weight"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_names_that_no_graph_has_are_refused(what, saved, tmp_path):
    mark = tmp_path / "mark"
    bad = told_otherwise(saved, lambda d: HOSTILE[what](d, CODE.format(str(mark))))
    with pytest.raises(UnsafeFileError):
        lrp_fx.load(bad)
    assert not mark.exists()


def test_a_file_with_something_missing_is_no_graph(saved):
    for key in about(saved):
        if key not in ("weights", "outputs", "rules", "positions"):
            with pytest.raises(LrpError):
                lrp_fx.load(told_otherwise(saved, lambda d, key=key: d.pop(key)))


def test_what_the_exported_program_says_is_not_run(saved, tmp_path):
    """``torch.export.load`` evaluates formulas and looks up functions in it; ours does not read it."""
    with zipfile.ZipFile(saved) as archive:
        program = archive.read("archive/models/model.json").decode()
    bad = changed(saved, {"models/model.json": program.replace("torch.ops.aten.bmm.default", "torch.os.system")})
    loaded = lrp_fx.load(bad)
    wanted = lrp_fx.load(saved)(X, target=1).relevance["x"]
    assert torch.equal(loaded(X, target=1).relevance["x"], wanted)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The cache's folder with one entry, and what it says."""
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path / "cache"))
    lrp_fx.convert(layers(), X)
    (path,) = (tmp_path / "cache").glob("*.pt")
    return path, torch.load(path, weights_only=True)


ENUM = {
    "type": "builtins.list",
    "context": '{"\\u005f_enum__": 1, "fqn": "antigravity:x", "name": "x"}',
    "children_spec": [],
}
CACHED = {
    "an argument": lambda d, code: d.update(arguments=[code]),
    "an argument with a default": lambda d, code: d.update(arguments=[f"x={code}"]),
    "a keyword": lambda d, code: first_call(d["graph"]["nodes"])[4].update(dict=[[code, 1]]),
    "a weight": lambda d, code: d["graph"]["names"].update({"0.weight": "__class__"}),
    "outputs": lambda d, code: d.update(outputs=json.dumps([1, ENUM])),
}


def count_captures(monkeypatch, made):
    """Append to ``made`` what is captured anew from now on."""
    capture = store.capture
    monkeypatch.setattr(store, "capture", lambda *args, **how: made.append(args) or capture(*args, **how))


@pytest.mark.parametrize("what", CACHED)
def test_code_in_an_entry_of_the_cache_is_not_run(what, cached, tmp_path, monkeypatch):
    (path, held), mark = cached, tmp_path / "mark"
    document = json.loads(held["document"])
    CACHED[what](document, CODE.format(str(mark)))
    torch.save({**held, "document": json.dumps(document)}, path)
    made = []
    count_captures(monkeypatch, made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xmodel = lrp_fx.convert(layers(), X)
    assert made and not mark.exists() and "antigravity" not in sys.modules, "captured anew"
    assert torch.equal(xmodel(X), layers()(X))


def test_a_pickle_in_an_entry_of_the_cache_is_not_run(cached, tmp_path, monkeypatch):
    (path, held), mark = cached, tmp_path / "mark"
    torch.save({**held, "further": Touch(mark)}, path)
    made = []
    count_captures(monkeypatch, made)
    lrp_fx.convert(layers(), X)
    assert made and not mark.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_cache_that_others_can_write_to_is_not_used(mode, cached, monkeypatch):
    path, _ = cached
    path.parent.chmod(mode)
    made = []
    count_captures(monkeypatch, made)
    with pytest.warns(UserWarning, match="others may write"):
        lrp_fx.convert(layers(), X)
    assert len(made) == 1 and list(path.parent.iterdir()) == [path]
    path.parent.chmod(0o755)
    lrp_fx.convert(layers(), X)
    assert len(made) == 1, "from the cache"


def test_a_file_or_folder_of_another_user_is_not_used(cached, monkeypatch):
    path, _ = cached
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    if os.stat(path).st_uid == 0:  # root's are as good as one's own
        os.chown(path.parent, 1234, -1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        lrp_fx.convert(layers(), X)


def test_names():
    assert identifier("x_1") == "x_1" and attribute("layers.0.for.weight") == "layers.0.for.weight"
    for name in ("x=1", "a b", "for", "__class__", "", None, 3, "x\n", "x.y"):
        with pytest.raises(UnsafeFileError):
            identifier(name)
    for path in ("a.__class__", "__init__.__globals__", "a..b", "a b.c", "", None, 'a"b'):
        with pytest.raises(UnsafeFileError):
            attribute(path)


def test_operators_that_a_file_may_name():
    aten = torch.ops.aten
    for known in (aten.linear.default, aten.convolution_backward.default, aten.sym_size.int, aten.einsum.default):
        assert harmless(known) and operator_named(known._schema.name, known._overloadname) is known
    for other in (
        aten.from_file.default,
        aten.add_.Tensor,
        aten.copy_.default,
        aten._print.default,
        aten.set_data.default,
    ):
        assert not harmless(other)
    assert not harmless(torch.ops.aten.save.default), "TorchScript's own"


def test_containers_that_name_code():
    from torch.utils import _pytree as pytree

    plain = pytree.treespec_dumps(pytree.tree_structure({"a": (1, [2]), "b": None}))
    assert not needs_import(plain) and structure(plain) == pytree.tree_structure({"a": (1, [2]), "b": None})
    import collections

    named = pytree.treespec_dumps(pytree.tree_structure(collections.defaultdict(list, a=1)))
    with pytest.raises(UnsafeFileError, match="import"):
        structure(named)


class Pair(nn.Module):
    """Ids and a mask, classes; ``scale`` is a constant of the capture."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, ids, mask, scale=1.0):
        return self.head((self.embed(ids) * mask[..., None] * scale).sum(1))


IDS, MASK = torch.arange(12).view(2, 6), torch.ones(2, 6)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The graph at hand and the one out of a file."""
    path = tmp_path_factory.mktemp("pair") / "x.pt2"
    xmodel = lrp_fx.convert(Pair().eval(), IDS, MASK, scale=2.0)
    lowered = xmodel.lower(IDS, MASK, scale=2.0, target=1)
    lowered.save(path)
    return xmodel, {"lowered": lowered, "loaded": lrp_fx.load(path)}


WRONG = {
    "class out of range": (TargetError, lambda f: f(IDS, MASK, scale=2.0, target=5)),
    "class far below": (TargetError, lambda f: f(IDS, MASK, scale=2.0, target=-1000)),
    "a fraction": (TargetError, lambda f: f(IDS, MASK, scale=2.0, target=1.5)),
    "too many targets": (TargetError, lambda f: f(IDS, MASK, scale=2.0, target=torch.ones(7, dtype=torch.long))),
    "another form": (TargetError, lambda f: f(IDS, MASK, scale=2.0, target=(1, 2))),
    "NaN": (InputError, lambda f: f(IDS, MASK * float("nan"), scale=2.0, target=1)),
    "infinite": (lrp_fx.errors.NumericalError, lambda f: f(IDS, MASK * float("inf"), scale=2.0, target=1)),
    "empty": (InputError, lambda f: f(IDS[:0], MASK[:0], scale=2.0, target=1)),
    "an id that is none": (InputError, lambda f: f(IDS + 500, MASK, scale=2.0, target=1)),
    "other precision": (InputError, lambda f: f(IDS, MASK.double(), scale=2.0, target=1)),
    "other kind of ids": (InputError, lambda f: f(IDS.float(), MASK, scale=2.0, target=1)),
    "other device": (InputError, lambda f: f(IDS.to("meta"), MASK.to("meta"), scale=2.0, target=1)),
    "one dimension": (InputError, lambda f: f(IDS[0], MASK[0], scale=2.0, target=1)),
    "sizes that differ": (InputError, lambda f: f(IDS, MASK[:, :3], scale=2.0, target=1)),
    "a missing input": (InputError, lambda f: f(IDS, scale=2.0, target=1)),
    "an unknown input": (InputError, lambda f: f(IDS, MASK, scale=2.0, tokens=IDS, target=1)),
    "another constant": (InputError, lambda f: f(IDS, MASK, scale=3.0, target=1)),
    "a list": (InputError, lambda f: f(IDS.tolist(), MASK, scale=2.0, target=1)),
}


@pytest.mark.parametrize("way", ["lowered", "loaded"])
@pytest.mark.parametrize("what", WRONG)
def test_a_graph_out_of_a_file_checks_what_the_one_at_hand_checks(what, way, both):
    error, call = WRONG[what]
    with pytest.raises(error):
        call(both[1][way].explain)


@pytest.mark.parametrize("way", ["lowered", "loaded"])
def test_inputs_by_name_and_by_position_in_any_order(way, both):
    xmodel, graphs = both
    ids, mask = IDS.repeat(2, 1)[:3], torch.rand(3, 6)
    wanted = xmodel.explain(ids, mask, scale=2.0, target=[4, 0, -1])
    for call in (
        lambda f: f(ids, mask, scale=2.0, target=torch.tensor([4, 0, -1])),
        lambda f: f(scale=2.0, mask=mask, ids=ids, target=torch.tensor([4, 0, -1])),
        lambda f: f(ids, scale=2.0, mask=mask, target=torch.tensor([4, 0, 4])),
    ):
        found = call(graphs[way].explain)
        assert type(found) is type(wanted) and found.relevance.keys() == wanted.relevance.keys()
        for name in wanted.relevance:
            assert torch.allclose(found.relevance[name], wanted.relevance[name], atol=1e-6)
        assert torch.allclose(found.target, wanted.target, atol=1e-6)


def test_constants_of_a_file_need_not_be_given(both):
    loaded = both[1]["loaded"]
    found, wanted = loaded(IDS, MASK, target=1), loaded(IDS, MASK, scale=2.0, target=1)
    assert torch.equal(found.relevance["ids"], wanted.relevance["ids"])
