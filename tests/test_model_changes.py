"""A model that was changed after its capture is explained as it is now; one that was not is not captured again."""

import copy
import sys
import types

import peft
import pytest
import torch
import transformers
from models import few
from torch import nn
from torch.nn.utils import parametrizations, prune

import lrp_fx
from lrp_fx.cache.fingerprint import fingerprint
from lrp_fx.capture import ModelState
from lrp_fx.capture.signature import read_call

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Options:
    """A plain object that a module reads."""

    def __init__(self):
        self.scales = [1.0, 2.0]
        self.nested = {"shift": 0.0}
        self.doubled = {"nothing"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.act, self.last = nn.ReLU(), nn.Linear(8, 3)
        self.scale, self.options = 1.0, Options()
        self.plain = torch.ones(8)
        self.register_buffer("keep", torch.ones(8), persistent=False)

    def forward(self, x):
        h = self.act(self.norm(self.first(x))) * self.keep * self.plain * self.options.scales[1]
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        if "last" in self.options.doubled:
            h = 2 * h
        return self.last(h + self.options.nested["shift"]) * self.scale


def net():
    torch.manual_seed(0)
    return Net().double().eval()


def _hook(strength):
    def hook(module, inputs, output):
        return output * strength

    return hook


def _other_state(model):
    return {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}


#: changes after which the model is another one
REPLACED = {
    "a parameter": lambda m: setattr(m.first, "weight", nn.Parameter(torch.randn(8, 6, dtype=torch.float64))),
    "a buffer": lambda m: setattr(m.norm, "running_mean", torch.randn(8, dtype=torch.float64)),
    "a plain tensor": lambda m: setattr(m, "plain", torch.zeros(8, dtype=torch.float64)),
    "load_state_dict(assign=True)": lambda m: m.load_state_dict(_other_state(m), assign=True),
    "a module": lambda m: setattr(m, "last", nn.Linear(8, 3).double()),
    "an activation": lambda m: setattr(m, "act", nn.Tanh()),
    "layers cut": lambda m: setattr(m, "blocks", m.blocks[:1]),
    "a layer appended": lambda m: m.blocks.append(nn.Linear(8, 8).double()),
    "an attribute": lambda m: setattr(m, "scale", 3.0),
    "an attribute of a submodule": lambda m: setattr(m.norm, "eps", 1.0),
    "a list in an object": lambda m: m.options.scales.__setitem__(1, 5.0),
    "a dict in an object": lambda m: m.options.nested.update(shift=1.0),
    "a set in an object": lambda m: m.options.doubled.add("last"),
    "a forward hook": lambda m: m.act.register_forward_hook(_hook(2.0)),
    "weight norm": lambda m: parametrizations.weight_norm(m.first).parametrizations.weight.original0.data.mul_(2),
    "pruning": lambda m: prune.l1_unstructured(m.first, "weight", amount=0.5),
    "forward": lambda m: setattr(m, "forward", lambda x: m.last(m.act(m.first(x)))),
}
#: changes that a graph which shares the tensors follows
IN_PLACE = {
    "a parameter": lambda m: m.first.weight.data.mul_(2),
    "the data of a parameter": lambda m: setattr(m.first.weight, "data", torch.randn(8, 6, dtype=torch.float64)),
    "a buffer": lambda m: m.keep[0].zero_(),
    "a plain tensor": lambda m: m.plain[0].zero_(),
    "load_state_dict": lambda m: m.load_state_dict(_other_state(m)),
    "training mode": lambda m: m.train(),
    "frozen weights": lambda m: m.requires_grad_(False),
    "an equal attribute": lambda m: setattr(m, "scale", float("1.0")),
    "half and back": lambda m: m.first.float().double(),
}


def agrees_with_a_fresh_conversion(model, xmodel):
    attribution, fresh = xmodel.explain(X), lrp_fx.convert(model).explain(X)
    trained = model.training
    assert torch.allclose(xmodel(X), model.eval()(X), 1e-12, 1e-12)
    model.train(trained)
    assert torch.allclose(attribution.target, fresh.target, 1e-12, 1e-12)
    assert torch.allclose(attribution.relevance["x"], fresh.relevance["x"], 1e-9, 1e-12)


@pytest.mark.parametrize(
    "change", few(REPLACED, "a parameter", "a layer appended", "a list in an object", "a set in an object", "forward")
)
def test_another_model_is_captured_anew(change):
    model = net()
    xmodel = lrp_fx.convert(model, X)
    xmodel.explain(X)
    REPLACED[change](model)
    agrees_with_a_fresh_conversion(model, xmodel)
    assert len(xmodel.captures) == 2 and xmodel.captures.reasons[-1].startswith("the model changed: ")


@pytest.mark.parametrize("change", IN_PLACE)
def test_what_is_written_in_place_is_followed_without_a_capture(change):
    model = net()
    xmodel = lrp_fx.convert(model, X)
    xmodel.explain(X)
    IN_PLACE[change](model)
    agrees_with_a_fresh_conversion(model, xmodel)
    assert len(xmodel.captures) == 1


@pytest.mark.parametrize("change", ["an attribute", "a list in an object", "a hook's strength", "the same again"])
def test_the_disk_cache_has_the_same_notion(change, monkeypatch):
    """What the state of a model notes without looking at tensors, its fingerprint does too."""
    model = net()
    state, call = ModelState(model), read_call(model, (X,), {})
    before = fingerprint(model, call)
    if change in REPLACED:
        REPLACED[change](model)
    elif change == "a hook's strength":
        model.norm.momentum = 0.7
    assert state.unchanged() == (fingerprint(model, call) == before) == (change == "the same again")


def test_a_change_that_is_taken_back_finds_its_capture():
    model = net()
    xmodel = lrp_fx.convert(model, X)
    first = xmodel.explain(X).relevance["x"]
    for scale in (3.0, 1.0, 3.0, 1.0):
        model.scale = scale
        found = xmodel.explain(X).relevance["x"]
    assert torch.equal(found, first) and len(xmodel.captures) == 2
    handle = model.act.register_forward_hook(_hook(0.5))
    xmodel.explain(X)
    handle.remove()
    assert torch.equal(xmodel.explain(X).relevance["x"], first) and len(xmodel.captures) == 3


def test_a_hook_that_closes_over_its_strength_is_followed():
    model, box = net(), {"strength": 2.0}
    model.act.register_forward_hook(lambda module, inputs, output: output * box["strength"])
    xmodel = lrp_fx.convert(model, X)
    xmodel.explain(X)
    box["strength"] = 4.0
    agrees_with_a_fresh_conversion(model, xmodel)


class Steering:
    """What a hook does, as a method of an object."""

    def __init__(self):
        self.strength = 2.0

    def hook(self, module, inputs, output):
        return output * self.strength


def test_a_hook_that_is_a_method_of_an_object_is_followed():
    model, steering = net(), Steering()
    model.act.register_forward_hook(steering.hook)
    xmodel = lrp_fx.convert(model, X)
    xmodel.explain(X)
    steering.strength = 4.0
    agrees_with_a_fresh_conversion(model, xmodel)


STRENGTH, SHIFT = 2.0, {"by": 1.0}


def shifted(h, *, times=1.0):
    return h + times * SHIFT["by"]


class ReadsGlobals(nn.Module):
    """As in a notebook: what the forward reads stands beside the class."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return STRENGTH * self.linear(x) + shifted(x[:, :3]) * x[:, 3:]


#: name -> change of what the forward of ``ReadsGlobals`` reads, of its own or of a function that it calls
GLOBALS = {
    "a number": lambda patch, here: patch.setattr(here, "STRENGTH", 5.0),
    "a dict that a function reads": lambda patch, here: patch.setitem(here.SHIFT, "by", 3.0),
    "a function": lambda patch, here: patch.setattr(here, "shifted", lambda h: h * h),
    "a default of a function": lambda patch, here: patch.setitem(here.shifted.__kwdefaults__, "times", 3.0),
}


@pytest.mark.parametrize("change", GLOBALS)
def test_globals_that_a_forward_reads_are_followed(change, monkeypatch):
    model = ReadsGlobals().double().eval()
    xmodel, call = lrp_fx.convert(model, X), read_call(model, (X,), {})
    xmodel.explain(X)
    before = fingerprint(model, call)
    GLOBALS[change](monkeypatch, sys.modules[__name__])
    agrees_with_a_fresh_conversion(model, xmodel)
    assert len(xmodel.captures) == 2 and f"'{__name__}." in xmodel.captures.reasons[-1]
    if change != "a function":  # (a lambda has no name in other processes)
        assert fingerprint(model, call) != before


class Watched(nn.Module):
    """The forward reads what a hook wrote at another layer."""

    def __init__(self, attach):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(10, 3)
        self.seen, self.box = None, {}
        attach(self)

    def forward(self, x):
        h = self.second(self.first(x).relu())
        return self.last(torch.cat([h, self.box["seen"] if self.box else self.seen], -1))

    def write(self, module, inputs, output):
        self.seen = output

    def noted(self, output):
        self.seen = output
        return output


def _patched(model):
    forward = model.first.forward
    model.first.forward = lambda x: model.noted(forward(x))


def _patched_method(model):
    forward = model.first.forward
    model.first.forward = types.MethodType(lambda self, x: model.noted(forward(x)), model.first)


def _boxed(model):
    box = model.box
    model.first.register_forward_hook(lambda module, inputs, output: box.update(seen=output))


def _closed_method(model):
    write = types.MethodType(lambda self, module, inputs, output: setattr(model, "seen", output), model.first)
    model.first.register_forward_hook(write)


def _listed(model):
    model.first.watchers = {"after": [types.MethodType(lambda self, *args: setattr(model, "seen", args[-1]), model)]}
    model.first.register_forward_hook(lambda module, *args: module.watchers["after"][0](*args))


#: ways to write what a layer returns to where the forward reads it
WATCHING = {
    "a method of the model": lambda m: m.first.register_forward_hook(m.write),
    "a function around the model": lambda m: m.first.register_forward_hook(lambda *args: setattr(m, "seen", args[-1])),
    "a dict of the model": _boxed,
    "another forward": _patched,
    "another forward, as a method": _patched_method,
    "a function around the model, as a method": _closed_method,
    "a list in a dict of such methods": _listed,
}


@pytest.mark.parametrize("attach", WATCHING)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_hook_writes_to_the_copy_that_is_captured(attach, dynamic):
    """What it wrote in an earlier run of the model is no constant of the capture."""
    torch.manual_seed(0)
    model = Watched(WATCHING[attach]).double().eval()
    model(X)
    seen = model.box["seen"] if model.box else model.seen
    xmodel = lrp_fx.convert(model, X, rules="gradient", dynamic=dynamic)
    assert (model.box["seen"] if model.box else model.seen) is seen
    for x in (X.clone(), X.flip(0), X.flip(0)[:2]):
        relevance = xmodel.explain(x, target=0).relevance["x"]
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        assert torch.allclose(xmodel(x), model(x), 1e-12, 1e-12)
        assert torch.allclose(relevance, gradient * x, 1e-9, 1e-12)
    assert len(xmodel.captures) == (1 if dynamic else 2)


def test_a_buffer_that_left_and_came_back_is_the_model_s():
    """``double()`` and ``float()`` replace buffers: a graph that had the old one would not see it change."""
    model = net()
    xmodel = lrp_fx.convert(model, X)
    xmodel.explain(X)
    model.float()
    xmodel.explain(X.float())
    model.double()
    model.norm.running_mean.add_(1.0)
    agrees_with_a_fresh_conversion(model, xmodel)


class Counting(nn.Module):
    """Writes attributes and a buffer while it runs."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.seen = nn.Linear(6, 3), 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.shape[0])
        return self.linear(x)


def test_what_a_run_writes_is_no_change_and_is_not_written_by_a_capture():
    model = Counting().double()
    xmodel = lrp_fx.convert(model, X)
    assert model.calls == 0 and model.seen == []
    for _ in range(3):
        model(X)
        xmodel.explain(X)
    assert len(xmodel.captures) == 1


class Stateful(nn.Module):
    """What it returns depends on its earlier runs."""

    def __init__(self, step):
        super().__init__()
        self.linear, self.step = nn.Linear(6, 3), step
        self.count, self.past, self.last = 0, [], None
        self.register_buffer("kept", torch.zeros(5, 3, dtype=torch.float64))

    def forward(self, x):
        return self.step(self, self.linear(x).tanh())


def _counts(model, h):
    model.count += 1
    return h * model.count


def _replaces_a_buffer(model, h):
    y = h * (1 + model.kept)
    model.kept = h.detach()
    return y


def _replaces_an_attribute(model, h):
    y = h if model.last is None else h * model.last
    model.last = h.detach()
    return y


def _appends(model, h):
    model.past.append(h.detach())
    return h * torch.stack(model.past).sum(0)


def _writes_in_place(model, h):
    y = h * (1 + model.kept)
    model.kept.copy_(h.detach())
    return y


@pytest.mark.parametrize(
    "step", [_counts, _replaces_a_buffer, _replaces_an_attribute, _appends, _writes_in_place], ids=lambda s: s.__name__
)
def test_state_that_runs_carry_on_is_the_model_s(step):
    """The model is explained as it would run now; explaining it does not make it go on."""
    torch.manual_seed(0)
    model = Stateful(step).double().eval()
    xmodel = lrp_fx.convert(model, X, rules="gradient")
    for x in (X, X.flip(0), X):
        explained = [xmodel.explain(x, target=1) for _ in range(2)]
        outputs, x = xmodel(x), x.clone().requires_grad_()
        expected = copy.deepcopy(model)(x)
        (gradient,) = torch.autograd.grad(expected[:, 1].sum(), x)
        torch.testing.assert_close(outputs, expected.detach(), rtol=1e-12, atol=1e-12)
        for one in explained:
            torch.testing.assert_close(one.relevance["x"], (gradient * x).detach(), rtol=1e-9, atol=1e-12)
        model(X)
    assert len(xmodel.captures) == (1 if step is _writes_in_place else 3)


@pytest.mark.slow
def test_an_adapter_that_is_merged_counts_once():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    base = transformers.LlamaForCausalLM(config).double()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model = model.double().eval()
    ids = torch.randint(0, 50, (2, 6))
    xmodel = lrp_fx.convert(model)
    apart = xmodel.explain(input_ids=ids).target
    model.merge_adapter()
    merged = xmodel.explain(input_ids=ids)
    fresh = lrp_fx.convert(model).explain(input_ids=ids)
    assert torch.allclose(merged.target, apart, 1e-9) and torch.allclose(merged.target, fresh.target, 1e-12)
    assert torch.allclose(merged.relevance["input_ids"], fresh.relevance["input_ids"], 1e-9, 1e-12)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.allclose(xmodel.explain(input_ids=ids).target, model(input_ids=ids).logits[:, -1].amax(-1), 1e-9)
    assert torch.allclose(xmodel.explain(input_ids=ids).target, apart, 1e-9)


def test_of_many_modules_the_last_is_looked_at_like_the_first():
    """How much is looked at behind an attribute is limited for each module, not for all modules together."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = [1.0]

    model = nn.ModuleList(Small() for _ in range(2100))
    for place in (0, 2099):
        state = ModelState(model)
        model[place].scales[0] = 2.0
        assert not state.unchanged()
