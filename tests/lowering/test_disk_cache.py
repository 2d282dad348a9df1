"""LRP_FX_CACHE: relevance graphs kept on disk are those that are lowered anew, and the folder stays within its limit."""

import json
import os

import models
import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.cache import folder as files
from lrp_fx.lowering import lowered as lowering
from lrp_fx.lowering import trial

IDS = models.ids(2, 5, high=49)


class Net(nn.Module):
    """Tokens, statistics that are buffers, weights of two layers."""

    def __init__(self, statistic=2.0):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50)
        self.register_buffer("statistic", torch.full((8,), statistic))

    def forward(self, input_ids):
        h = torch.tanh(self.mix(self.embed(input_ids))) / (self.statistic + 1).sqrt()
        return self.head(h)


def net(**fields):
    torch.manual_seed(0)
    return Net(**fields).double().eval()


def converted(**fields):
    return lrp_fx.convert(net(**fields), input_ids=IDS, rules="attnlrp")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def traced(monkeypatch):
    """One entry for every graph that was lowered anew."""
    made = []
    anew = lowering.functional_graph
    monkeypatch.setattr(lowering, "functional_graph", lambda *given: made.append(1) or anew(*given))
    return made


def same(found, wanted, tolerance=1e-9):
    torch.testing.assert_close(found.target, wanted.target, rtol=tolerance, atol=tolerance)
    for kind in ("relevance", "latents"):
        assert getattr(found, kind).keys() == getattr(wanted, kind).keys()
        for name, value in getattr(wanted, kind).items():
            assert float((getattr(found, kind)[name] - value).abs().max()) <= tolerance * float(value.abs().max())


def lowered_files(place):
    """Those that hold a relevance graph: captures do not say what a target indexes."""
    read = {path: json.loads(torch.load(path, weights_only=True)["document"]) for path in place.glob("*.pt")}
    return [path for path, document in read.items() if "indexed" in document]


@pytest.mark.parametrize("name", models.few(["llama2", "mixtral", "flan-t5", "bert", "resnet", "encoder"], "resnet"))
def test_a_kept_graph_is_the_graph(name, folder, traced):
    model, inputs = models.build(name)
    first = lrp_fx.convert(model, **inputs, rules="attnlrp").lower(**inputs)
    second = lrp_fx.convert(model, **inputs, rules="attnlrp").lower(**inputs)
    assert len(traced) == 1 and len(lowered_files(folder)) == 1
    assert first.graph_module.code == second.graph_module.code and first.about == second.about
    assert str(first.guards) == str(second.guards)
    larger = {k: torch.cat([v, v.flip(0)]) for k, v in inputs.items()}
    longer = {k: torch.cat([v, v], 1) for k, v in inputs.items()} if name in ("llama2", "bert", "flan-t5") else inputs
    for given in (inputs, larger, longer):
        same(second(**given), first(**given), 0)
    own = {id(p) for p in model.parameters()}
    held = list(second.graph_module.parameters())
    assert held and all(id(p) in own for p in held)


@pytest.mark.slow
def test_the_second_process_lowers_nothing_and_explains_the_same(folder, in_two_processes):
    printed = in_two_processes("""
        import models, lrp_fx
        from lrp_fx.lowering import lowered as lowering
        if sys.argv[1] == "second":
            def refuse(*args, **kwargs):
                raise AssertionError("lowered again")
            lowering.with_target = lowering.functional_graph = refuse
        model, inputs = models.build("llama2")
        xmodel = lrp_fx.convert(model, **inputs)
        lowered = xmodel.lower(target=3, at="model.layers.0.mlp", outputs=True)
        compiled = xmodel.compile(target=(2, 3), rules="cp_lrp").compile(backend="eager")
        for found in (lowered(input_ids=models.ids(3, 4)), compiled(input_ids=models.ids(4, 9), target=(4, [1, 2, 3, 4]))):
            print(found.relevance["input_ids"].tolist(), {k: float(v.sum()) for k, v in found.latents.items()})
    """)
    assert printed[0] == printed[1] and "model.layers.0.mlp" in printed[0]
    assert len(lowered_files(folder)) == 2


ASKED = {
    "another class is the same form": ({"target": 3}, {"target": torch.tensor([1, 2])}, 1),
    "a position and a class": ({"target": 3}, {"target": (1, 3)}, 2),
    "a contrast": ({"target": 3}, {"target": lrp_fx.Contrast(1, 2)}, 2),
    "a contrast to all": ({"target": lrp_fx.Contrast(1, 2)}, {"target": lrp_fx.Contrast(1)}, 2),
    "other rules": ({}, {"rules": "gradient"}, 2),
    "another strength": (
        {"rules": {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 1e-3}}}},
        {"rules": {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 1e-2}}}},
        2,
    ),
    "a tensor inside": ({}, {"at": "mix"}, 2),
    "outputs": ({}, {"outputs": True}, 2),
    "fixed sizes": ({}, {"dynamic": False, "input_ids": IDS}, 2),
    "a condition": ({"at": "mix"}, {"condition": {"mix": [1]}}, 2),
    "other neurons": ({"condition": {"mix": [1, 2]}}, {"condition": {"mix": [1, 3]}}, 2),
    "other weights of neurons": (
        {"condition": {"mix": torch.ones(8, dtype=torch.float64)}},
        {"condition": {"mix": torch.arange(8.0).double()}},
        2,
    ),
    "the same neurons": ({"condition": {"mix": [1, 2]}}, {"condition": {"mix": (1, 2)}}, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", models.few(ASKED, "another class is the same form", "other rules", "other neurons", "fixed sizes")
)
def test_a_graph_serves_what_it_was_asked_for_and_nothing_else(change, folder, traced, monkeypatch):
    one, other, count = ASKED[change]
    found = [converted().lower(**asked) for asked in (one, other, one, other)]
    assert len(traced) == count == len(lowered_files(folder))
    monkeypatch.delenv("LRP_FX_CACHE")
    xmodel = converted()
    for graph, asked in zip(found[2:], (one, other), strict=True):
        same(graph(input_ids=IDS), xmodel.lower(**asked)(input_ids=IDS))


@pytest.mark.slow
def test_switches_of_pytorch_are_part_of_the_key(folder, traced):
    xmodel = lrp_fx.convert(*models.build("mha")[:1], **models.build("mha")[1], rules="attnlrp")
    for backend in (torch.nn.attention.SDPBackend.MATH, torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        with torch.nn.attention.sdpa_kernel(backend):
            xmodel.lower()
    assert len(traced) == 2


def test_weights_and_buffers_are_those_of_the_model_at_hand(folder, traced):
    converted().lower(target=3)
    torch.manual_seed(1)
    other = Net(statistic=5.0).double().eval()
    xmodel = lrp_fx.convert(other, input_ids=IDS, rules="attnlrp")
    found = xmodel.lower(target=3)
    assert len(traced) == 1
    same(found(input_ids=IDS), xmodel.explain(input_ids=IDS, target=3))


def test_without_any_values_there_is_nothing_to_compare(folder, traced):
    with torch.device("meta"):
        model, ids = Net().eval(), torch.zeros(2, 5, dtype=torch.long)
    found = [lrp_fx.convert(model, input_ids=ids, rules="attnlrp").lower(input_ids=ids) for _ in range(2)]
    assert len(traced) == 1 and found[0].graph_module.code == found[1].graph_module.code


def test_code_is_not_kept(folder, traced):
    lrp_fx.register_rule("kept-damped", base="epsilon", backward=lambda g, y: g / 2)
    rules = {"base": "attnlrp", "rules": {"linear": "kept-damped"}}
    for asked in ({"target": lambda output: output[:, -1, 3]}, {"rules": rules}):
        for _ in range(2):
            converted().lower(**asked)
    assert len(traced) == 4 and not lowered_files(folder)


def test_a_recorded_run_is_not_kept(folder, traced):
    for _ in range(2):
        lrp_fx.convert(net(), input_ids=IDS, capture="trace", rules="attnlrp").lower()
    assert len(traced) == 2 and not folder.exists()


def test_other_sizes_get_a_file_of_their_own(folder, traced):
    for length in (5, 6, 5, 6):
        ids = models.ids(2, length, high=49)
        lrp_fx.convert(net(), input_ids=ids, rules="attnlrp").lower(input_ids=ids, dynamic=False)(input_ids=ids)
    assert len(traced) == 2 == len(lowered_files(folder))


def _truncated(file):
    file.write_bytes(file.read_bytes()[:2000])


def _replaced(*pairs):
    def damage(file):
        held = torch.load(file, weights_only=True)
        document = held["document"]
        for old, new in pairs:
            assert old in document
            document = document.replace(old, new)
        torch.save(held | {"document": document}, file)

    return damage


DAMAGES = {
    "truncated": _truncated,
    "empty": lambda file: file.write_bytes(b""),
    "foreign": lambda file: torch.save({"format": 1, "document": "[]", "tensors": {}}, file),
    "no operator": _replaced(('"aten::tanh"', '"aten::nothing"')),
    "another operator forward": _replaced(('"aten::tanh"', '"aten::sin"')),
    "another operator backward": _replaced(('"aten::div"', '"aten::mul"')),
    "another weight": _replaced(('"mix.weight": "mix.weight"', '"mix.weight": "embed.weight"')),
    "other sizes": _replaced(('"dims": [["', '"dims": [[7, "')),
    "code as a guard": _replaced(('"guards": [', '"guards": [["__import__", "os"], ')),
}


@pytest.mark.parametrize("damage", models.few(DAMAGES, *list(DAMAGES)[:2]))
@pytest.mark.parametrize("given", [{}, {"input_ids": IDS}], ids=["sizes alone", "inputs"])
def test_a_damaged_file_is_no_file(damage, given, folder, traced):
    converted().lower()
    (file,) = lowered_files(folder)
    DAMAGES[damage](file)
    for _ in range(2):  # the first writes it anew
        same(converted().lower(**given)(input_ids=IDS), converted().explain(input_ids=IDS))
    assert len(traced) == 2


def test_graphs_are_compared_on_few_samples_and_positions_and_on_all_where_those_do_not_do(folder):
    xmodel, seen = converted(), []
    guards = xmodel.lower(target=(19, 3)).guards
    call = lrp_fx.capture.read_call(xmodel.model, (), {"input_ids": models.ids(40, 20, high=49)})
    calls = trial.examples(call, guards)
    assert [tuple(c.leaves[0].shape) for c in calls] == [(16, 16), (40, 20)]
    assert torch.equal(calls[0].leaves[0], call.leaves[0][:16, :16])

    def explain(example):
        seen.append(tuple(example.leaves[0].shape))
        return xmodel.current.sweeper(xmodel.ruleset, ()).explain(example, (19, 3))

    assert trial.agree(explain, explain, calls, 0.0, False)
    assert seen == [(16, 16), (40, 20), (40, 20)]  # there is no twentieth position among sixteen


def test_without_values_inputs_are_made_up_that_relevance_can_be_seen_on(folder):
    xmodel = lrp_fx.convert(*models.build("resnet")[:1], **models.build("resnet")[1], rules="attnlrp")
    (call, _) = trial.examples(xmodel.current.example, xmodel.lower().guards)
    assert float(call.leaves[0].std()) > 0.5
    assert float(xmodel.explain(*call.leaves).relevance["pixel_values"].abs().max()) > 0


SIZES = {"": 4e9, "1000": 1000, "500MB": 5e8, " 1.5 gb ": 1.5e9, "20KB": 20000, "2TB": 2e12, "0": 0}


@pytest.mark.parametrize("text", SIZES)
def test_limits_are_bytes_or_have_a_unit(text, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE_LIMIT", text)
    assert files.limit() == SIZES[text]


@pytest.mark.parametrize("text", ["much", "-1", "4 GiB", "1e9", "GB"])
def test_a_limit_that_is_no_size_is_a_warning(text, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE_LIMIT", text)
    with pytest.warns(UserWarning, match="LRP_FX_CACHE_LIMIT=.* is no size .* the limit is 4GB"):
        assert files.limit() == 4e9


def _write(place, number, size=1000):
    files.Entry(place, f"{number:032x}").write({}, {"filling": torch.zeros(size, dtype=torch.uint8)}, "")


def _aged(place):
    """Every file as old as its number says, the last one the youngest."""
    for number, path in enumerate(sorted(place.iterdir())):
        os.utime(path, (1000 + number, 1000 + number))
    return sorted(place.iterdir())


def test_what_was_not_used_for_longest_goes(folder, monkeypatch):
    for number in range(4):
        _write(folder, number)
    others = [folder / "model.pt", folder / f"{'a' * 32}.txt", folder / "inductor"]
    for path in others[:2]:
        path.write_bytes(b"0" * 100_000)
    others[2].mkdir()
    first, second, third, fourth = _aged(folder)[:4]
    next(files.Entry(folder, first.name[:32]).files()).touch()
    size = first.stat().st_size
    monkeypatch.setenv("LRP_FX_CACHE_LIMIT", str(3 * size + size // 2))
    _write(folder, 4)
    assert not second.exists() and not third.exists()
    assert first.exists() and fourth.exists() and (folder / f"{4:032x}{first.name[32:]}").exists()
    assert all(path.exists() for path in others)


def test_what_is_read_counts_as_used(folder, traced, monkeypatch):
    xmodel = converted()
    xmodel.lower()
    before = [p.stat().st_mtime_ns for p in _aged(folder)]
    converted().lower()
    assert len(traced) == 1 and len(before) == 2
    assert all(p.stat().st_mtime_ns > max(before) + 10**12 for p in folder.iterdir())


def test_what_does_not_fit_is_not_kept(folder, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE_LIMIT", "0")
    same(converted().lower()(input_ids=IDS), converted().explain(input_ids=IDS))
    assert not list(folder.iterdir())


def test_files_that_another_process_removes_are_no_error(folder, monkeypatch):
    for number in range(3):
        _write(folder, number)
    (held,) = files.Entry(folder, f"{0:032x}").files()
    unlink, state = files.Path.unlink, files._state

    def raced(file):
        found = state(file)
        unlink(files.Path(file.path))
        return found

    monkeypatch.setattr(files, "_state", raced)
    files.make_room(folder, 0)
    assert not list(folder.iterdir())
    held.touch()
    files.make_room(folder / "gone", 0)
    assert not held.path.exists()
