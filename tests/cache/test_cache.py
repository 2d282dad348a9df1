"""LRP_FX_CACHE: captures kept on disk give the same relevance, and no other model ever gets one."""

import collections
import functools
import importlib
import re
import sys
import types
import warnings
import weakref

import models
import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.cache import store
from lrp_fx.cache.fingerprint import fingerprint
from lrp_fx.capture import packages
from lrp_fx.capture.signature import Call

SCALES = {"after": 1.0}  #: state of a module that no fingerprint sees


class Net(nn.Module):
    """Everything a capture may depend on, in small: attributes, a constant tensor, tied weights, a function."""

    def __init__(self, factor=2.0, constant=1.0, activation=torch.tanh, **fields):
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight
        self.factor, self.activation = factor, activation
        self.constant = torch.full((8,), constant)
        self.__dict__.update(fields)

    def forward(self, input_ids, double=False):
        h = self.activation(self.mix(self.embed(input_ids))) * self.factor + self.constant
        return self.head(h * SCALES["after"]) * (2 if double else 1)


def net(**fields):
    torch.manual_seed(0)
    return Net(**fields).eval()


IDS = models.ids(2, 5, high=49)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def captures(monkeypatch):
    """Names of the models that were captured anew."""
    made = []
    capture = store.capture
    monkeypatch.setattr(
        store, "capture", lambda model, *rest, **how: made.append(type(model).__name__) or capture(model, *rest, **how)
    )
    return made


def relevance(model, **inputs):
    found = lrp_fx.convert(model, **inputs).explain(**inputs).relevance
    return found["input_ids"] if "input_ids" in found else next(iter(found.values()))


def test_nothing_is_written_unless_asked_for(monkeypatch, tmp_path, captures):
    monkeypatch.delenv("LRP_FX_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        relevance(net(), input_ids=IDS)
    assert captures == ["Net", "Net"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", models.few(["llama2", "mixtral", "flan-t5", "gemma2", "resnet", "encoder"], "encoder"))
def test_a_kept_capture_is_the_capture(name, folder, captures):
    model, inputs = models.build(name)
    first, second = lrp_fx.convert(model, **inputs), lrp_fx.convert(model, **inputs)
    assert len(captures) == 1 and len(list(folder.iterdir())) == 1
    larger = {k: torch.cat([v, v.flip(0)]) for k, v in inputs.items()}
    for given in (inputs, larger):
        a, b = first.explain(**given), second.explain(**given)
        assert all(torch.equal(a.relevance[k], b.relevance[k]) for k in a.relevance)
    assert len(captures) == 1
    reports = [re.sub(r"in \d+\.\d s", "in a while", str(x.report())).split() for x in (first, second)]
    assert reports[0] == reports[1]
    made = {id(p) for p in model.parameters()}
    held = [p for p in second.current.captured.graph_module.parameters()]
    assert held and all(id(p) in made for p in held)
    lowered = second.lower(target=0)(**larger, target=1)
    wanted = first.explain(**larger, target=1)
    assert all(torch.allclose(lowered.relevance[k], wanted.relevance[k], 1e-9, 1e-12) for k in wanted.relevance)


def test_parts_of_attention_can_be_seen_in_a_kept_capture(folder, captures):
    model, inputs = models.build("llama2")
    a, b = (lrp_fx.convert(model, **inputs).explain(**inputs, at="*@scores").latents for _ in range(2))
    assert len(captures) == 1 and a and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_the_second_process_starts_without_capture(folder, in_two_processes):
    outputs = in_two_processes("""
        import models, lrp_fx
        if sys.argv[1] == "second":
            def refuse(*args, **kwargs):
                raise AssertionError("captured again")
            torch.export.export = refuse
        model, inputs = models.build("llama2")
        route = lrp_fx.convert(model, input_ids=models.ids(1, 9), capture="export")
        print(route.explain(input_ids=models.ids(3, 4)).relevance["input_ids"].tolist())
    """)
    assert outputs[0] == outputs[1]


OTHERS = {
    "an attribute": lambda: (net(factor=3.0), {}),
    "a further attribute": lambda: (net(note=("a", 1)), {}),
    "a constant tensor": lambda: (net(constant=2.0), {}),
    "a function": lambda: (net(activation=torch.sigmoid), {}),
    "a precision": lambda: (net().double(), {}),
    "untied weights": lambda: (_untied(net()), {}),
    "a constant of the call": lambda: (net(), {"double": True}),
}


def _untied(model):
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    return model


@pytest.mark.parametrize("change", OTHERS)
def test_whatever_changes_the_graph_changes_the_key(change, folder, captures, monkeypatch):
    relevance(net(), input_ids=IDS)
    model, further = OTHERS[change]()
    inputs = {"input_ids": IDS, **further}
    found = relevance(model, **inputs)
    assert len(captures) == 2 and len(list(folder.iterdir())) == 2
    assert torch.equal(relevance(model, **inputs), found) and len(captures) == 2
    monkeypatch.delenv("LRP_FX_CACHE")
    assert torch.equal(relevance(model, **inputs), found)


def _other_weights():
    torch.manual_seed(1)
    return Net().eval()


ALIKE = {
    "other weights": _other_weights,
    "frozen weights": lambda: net().requires_grad_(False),
    "training mode": lambda: net().train(),
}


@pytest.mark.parametrize("change", ALIKE)
def test_what_the_graph_does_not_depend_on_shares_it(change, folder, captures, monkeypatch):
    relevance(net(), input_ids=IDS)
    other = ALIKE[change]()
    found = relevance(other, input_ids=IDS)
    monkeypatch.delenv("LRP_FX_CACHE")
    assert len(captures) == 1 and torch.equal(relevance(other, input_ids=IDS), found)


def test_switches_of_pytorch_and_options_are_part_of_the_key(folder, captures):
    lrp_fx.convert(net(), input_ids=IDS)
    lrp_fx.convert(net(), input_ids=IDS, dynamic=False)
    lrp_fx.convert(net(), input_ids=IDS, capture="export")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        lrp_fx.convert(net().float(), input_ids=IDS)
    finally:
        torch.set_default_dtype(default)
    assert len(captures) == 4


def test_edited_source_is_another_model(folder, captures, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, file = tmp_path / "its_helper.py", tmp_path / "its_model.py"
    helper.write_text("def scaled(x):\n    return x * 2\n")
    file.write_text(
        "import torch, its_helper\n"
        "class Scaled(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return its_helper.scaled(x).sum(-1, keepdim=True)\n"
    )

    def explained():
        for name in ("its_model", "its_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return relevance(importlib.import_module("its_model").Scaled(), x=torch.ones(2, 3))

    assert torch.equal(explained(), explained()) and len(captures) == 1
    helper.write_text("def scaled(x):\n    return x + x\n")  # another graph with the same outputs
    assert float(explained()[0, 0]) == 2 and len(captures) == 2


def test_a_function_put_into_a_class_is_another_model(folder, captures, monkeypatch):
    before = relevance(net(), input_ids=IDS)
    monkeypatch.setattr(Net, "forward", lambda self, input_ids: self.head(self.embed(input_ids)))
    assert not torch.equal(relevance(net(), input_ids=IDS), before) and len(captures) == 2


def test_a_method_put_into_a_model_is_another_model(folder, captures):
    relevance(net(), input_ids=IDS)
    for _ in range(2):
        model = net()
        model.forward = types.MethodType(_same_forward, model)
        relevance(model, input_ids=IDS)
    assert len(captures) == 2


def _same_forward(self, input_ids, double=False):
    return Net.forward(self, input_ids, double)


def test_code_that_was_edited_after_it_was_imported_is_another_model(folder, captures, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "import torch\nclass Old(torch.nn.Module):\n    def forward(self, x):\n        return (x * 2).sum(-1, True)\n"
    )
    file = tmp_path / "its_old_model.py"
    file.write_text(text)
    importlib.invalidate_caches()
    old = importlib.import_module("its_old_model").Old()
    file.write_text(text.replace("x * 2", "x + x"))
    relevance(old, x=torch.ones(2, 3))
    sys.modules.pop("its_old_model")
    importlib.invalidate_caches()
    relevance(importlib.import_module("its_old_model").Old(), x=torch.ones(2, 3))
    assert len(captures) == 2


@pytest.mark.parametrize("scale", [5.0, 1.001])
def test_what_no_fingerprint_sees_is_found_by_running_the_model(scale, folder, captures, monkeypatch):
    relevance(net(), input_ids=IDS)
    monkeypatch.setitem(SCALES, "after", scale)
    found = relevance(net(), input_ids=IDS)
    monkeypatch.delenv("LRP_FX_CACHE")
    assert len(captures) == 2 and torch.equal(relevance(net(), input_ids=IDS), found)


GAIN = {"by": 1.0}


def _timed(function):
    @functools.wraps(function)
    def timed(*args, **kwargs):
        return function(*args, **kwargs)

    return timed


class Wrapped(nn.Module):
    @_timed
    def forward(self, x):
        return x * GAIN["by"]


def test_what_a_wrapped_method_reads_is_part_of_the_fingerprint(monkeypatch):
    model, call = Wrapped(), Call(("x",), (torch.ones(2, 3),), ("",))
    before = fingerprint(model, call)
    assert fingerprint(model, call) == before
    monkeypatch.setitem(GAIN, "by", 1 + 1e-7)  # outputs are as before, but for rounding
    assert fingerprint(model, call) != before


def _local(x):
    return torch.tanh(x)


@pytest.mark.parametrize(
    "thing",
    [
        lambda x: torch.tanh(x),
        collections.defaultdict(lambda: 1),
        iter([1]),
        torch.Generator(),
        torch.ones(3).to_sparse(),
    ],
)
def test_a_model_that_cannot_be_told_apart_is_not_kept(thing, folder, captures):
    for _ in range(2):
        with pytest.warns(UserWarning, match="captured anew each time: 'thing' is"):
            relevance(net(thing=thing), input_ids=IDS)
    assert len(captures) == 2 and not folder.exists()


def test_a_class_that_cannot_be_imported_is_not_kept(folder):
    class Inner(Net):
        pass

    with pytest.warns(UserWarning, match="cannot be imported by that name"):
        relevance(Inner().eval(), input_ids=IDS)
    assert not folder.exists()


def test_importable_functions_and_plain_objects_are_told_apart(folder, captures):
    relevance(net(activation=_local, places=[{"a": {1, 2}}, torch.float32, slice]), input_ids=IDS)
    relevance(net(activation=_local, places=[{"a": {2, 1}}, torch.float32, slice]), input_ids=IDS)
    relevance(net(activation=_local, places=[{"a": {2, 3}}, torch.float32, slice]), input_ids=IDS)
    assert len(captures) == 2


def _truncated(file):
    file.write_bytes(file.read_bytes()[:2000])


def _foreign(file):
    torch.save({"format": 1, "document": "[]", "tensors": {}}, file)


class Harmful:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("harm", "w"))


def _pickled(file):
    torch.save({"format": 1, "document": Harmful(), "tensors": {}}, file)


def _renamed(old, new):
    def damage(file):
        held = torch.load(file, weights_only=True)
        assert old in held["document"]
        torch.save(held | {"document": held["document"].replace(old, new)}, file)

    return damage


DAMAGES = {
    "truncated": _truncated,
    "empty": lambda file: file.write_bytes(b""),
    "foreign": _foreign,
    "pickled": _pickled,
    "another operator": _renamed('"aten::tanh"', '"aten::sigmoid"'),
    "no operator": _renamed('"aten::tanh"', '"aten::nothing"'),
    "code as a name": _renamed('"input_ids"', "\"input_ids=open('harm', 'w')\""),
    "another weight": _renamed('"mix.weight": "mix.weight"', '"mix.weight": "embed.weight"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_file(damage, folder, captures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = relevance(net(), input_ids=IDS)
    (file,) = folder.iterdir()
    DAMAGES[damage](file)
    assert torch.equal(relevance(net(), input_ids=IDS), wanted) and len(captures) == 2
    assert torch.equal(relevance(net(), input_ids=IDS), wanted) and len(captures) == 2  # written anew
    assert not (tmp_path / "harm").exists()


def test_a_folder_that_cannot_be_written_to_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="nothing is kept"):
        relevance(net(), input_ids=IDS)


def test_sizes_that_one_capture_does_not_serve_get_a_file_of_their_own(folder, captures):
    images = [torch.randn(2, 3, n, n) for n in (16, 24)]
    for x in (*images, *images):
        torch.manual_seed(0)
        relevance(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), input=x)
    assert len(captures) == 2 and len(list(folder.iterdir())) == 2


def test_a_recorded_run_is_not_kept(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrp_fx.convert(net(), input_ids=IDS, capture="trace")
    assert not folder.exists()


class Recurrent(nn.Module):
    """Its layer holds weak references to its own weights."""

    def __init__(self, kind=nn.LSTM, seed=0, **fields):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.head = kind(4, 5, batch_first=True, bidirectional=True), nn.Linear(10, 3)
        self.__dict__.update(fields)
        self.double().eval()

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", models.few([nn.LSTM, nn.GRU], nn.GRU))
def test_weak_references_are_no_state_of_their_own(kind, folder, captures, monkeypatch):
    """Other weights, also ones put in the place of the first, share the capture; what is led to counts."""
    x, assigned = torch.randn(2, 6, 4).double(), Recurrent(kind)
    relevance(Recurrent(kind), x=x)
    assigned.load_state_dict({k: v.clone() for k, v in Recurrent(kind, 1).state_dict().items()}, assign=True)
    found = [relevance(model, x=x) for model in (Recurrent(kind, 1), assigned)]
    assert len(captures) == 1 and torch.equal(*found)
    relevance(Recurrent(nn.RNN), x=x)
    assert len(captures) == 2
    monkeypatch.delenv("LRP_FX_CACHE")
    assert torch.allclose(found[0], relevance(Recurrent(kind, 1), x=x), rtol=1e-12)


def test_what_a_weak_reference_leads_to_counts(folder, captures):
    kept = [nn.Linear(2, n) for n in (2, 3)]
    for led in (None, *kept):
        for _ in range(2):
            relevance(net(reference=weakref.ref(led) if led is not None else None), input_ids=IDS)
    gone = weakref.ref(nn.Linear(2, 2))
    relevance(net(reference=gone), input_ids=IDS)
    assert gone() is None and len(captures) == 4


@pytest.mark.slow
def test_a_recurrent_model_starts_without_capture_in_a_second_process(folder, in_two_processes):
    outputs = in_two_processes("""
        import torch, lrp_fx
        from test_cache import Recurrent
        if sys.argv[1] == "second":
            def refuse(*args, **kwargs):
                raise AssertionError("captured again")
            torch.export.export = refuse
        x = torch.arange(48).view(2, 6, 4).double().sin()
        print(lrp_fx.convert(Recurrent(), x=x).explain(x=x).relevance["x"].tolist())
    """)
    assert outputs[0] == outputs[1]


def test_a_package_in_a_site_folder_further_down_the_path_is_installed(tmp_path, monkeypatch):
    """An environment may lend the packages of another one: their code is told by their version, too."""

    for place, package in (("site-packages", "lent_package"), ("elsewhere", "own_package")):
        (tmp_path / place / package).mkdir(parents=True)
        (tmp_path / place / package / "__init__.py").write_text('__version__ = "1.0"')
        monkeypatch.syspath_prepend(tmp_path / place)
        importlib.import_module(package)
    for cached in (packages.site_folders, packages.is_installed):
        cached.cache_clear()
    assert packages.is_installed("lent_package") and not packages.is_installed("own_package")
    packages.site_folders.cache_clear()  # (the folder of this test is no site folder of others)
