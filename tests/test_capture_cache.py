"""Captures are bounded, say why they were made, and are safe among threads."""

import sys
import threading
import warnings

import pytest
import torch
from models import build
from torch import nn

import lrp_fx
from lrp_fx.errors import RecaptureWarning


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, times=1):
        return self.linear(x) * times


class Branching(nn.Module):
    """Two branches, told apart by the values of the input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return self.linear(-x) * 10 + 100


def test_the_captures_that_were_used_last_are_kept():
    x = torch.randn(2, 4)
    xmodel = lrp_fx.convert(Scaled(), captures=3)
    for times in (1, 2, 3, 1, 4):
        xmodel.explain(x, times=times)
    assert len(xmodel.captures) == 3 and len(xmodel.captures.reasons) == 4
    xmodel.explain(x, times=1)  # used again in between, so it stayed
    assert len(xmodel.captures.reasons) == 4
    xmodel.explain(x, times=2)
    assert len(xmodel.captures.reasons) == 5


@pytest.mark.slow
def test_many_captures_are_told_once_with_what_keeps_changing():
    x = torch.randn(2, 4)
    xmodel = lrp_fx.convert(Scaled(), captures=2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for times in range(20):
            xmodel.explain(x, times=times)
    (told,) = [str(w.message) for w in seen if w.category is RecaptureWarning]
    assert "captured 16 times" in told and "'times' is" in told


def test_reasons_say_what_changed():
    xmodel = lrp_fx.convert(Branching())
    x = torch.ones(2, 4)
    xmodel.explain(x)
    xmodel.explain(-x)
    xmodel.model.double()
    xmodel.explain(x.double())
    first, decision, change = xmodel.captures.reasons
    assert first == "the first call" and "decisions" in decision and "torch.float64" in change


@pytest.mark.slow
def test_graphs_of_one_capture_are_bounded():
    x = torch.randn(2, 4)
    xmodel = lrp_fx.convert(Scaled(), x)
    for k in range(40):
        xmodel.explain(
            x, rules={"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 1e-6 * (k + 1)}}}
        )
    assert len(xmodel.current.rewritten) <= 16 and len(xmodel.current.sweepers) <= 16


def test_compile_replaces_what_it_made():
    x = torch.randn(2, 4)
    xmodel = lrp_fx.convert(Scaled(), x)
    for _ in range(3):
        xmodel.compile(x, target=0)
    assert [len(graphs) for graphs in xmodel.current.compiled.values()] == [1]
    xmodel.compile(x)
    assert [len(graphs) for graphs in xmodel.current.compiled.values()] == [2]


class Tempered(nn.Module):
    """One floating number that scales, and one that chooses a branch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, temperature=1.0, options=None):
        y = self.linear(x) / temperature
        return y * 2 if options is not None and options["threshold"] > 0.5 else y


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_number_that_only_scales_is_an_input(precision):
    model, x = Tempered().to(precision), torch.randn(3, 4, dtype=precision)
    xmodel = lrp_fx.convert(model)
    for k in range(8):
        temperature = 0.7 + k / 3
        attribution = xmodel.explain(x, temperature=temperature, target=1)
        fresh = lrp_fx.convert(model).explain(x, temperature=temperature, target=1)
        assert torch.equal(xmodel(x, temperature=temperature), model(x, temperature=temperature))
        assert list(attribution.relevance) == ["x"]
        assert torch.allclose(attribution.relevance["x"], fresh.relevance["x"], rtol=1e-5)
    assert len(xmodel.captures) == 2  # as it came first, then free
    assert xmodel.verify(x, temperature=3.5).passed
    many = xmodel.explain(x, temperature=0.3, targets=[0, 1]).relevance["x"][1]
    assert torch.allclose(many, xmodel.explain(x, temperature=0.3, target=1).relevance["x"], rtol=1e-5)
    lowered = xmodel.lower(x, temperature=0.9, target=1)
    assert torch.allclose(
        lowered(x, temperature=0.3).relevance["x"], xmodel.explain(x, temperature=0.3, target=1).relevance["x"], 1e-5
    )
    assert len(xmodel.captures) == 2


def test_a_number_that_chooses_a_branch_stays_a_constant():
    model, x = Tempered().double(), torch.randn(3, 4).double()
    xmodel = lrp_fx.convert(model)
    for threshold in (0.1, 0.9, 0.2, 0.8, 0.1):
        options = {"threshold": threshold}
        assert torch.equal(xmodel(x, options=options), model(x, options=options))
        assert torch.equal(xmodel.explain(x, options=options, target=1).target, model(x, options=options)[:, 1])
    assert len(xmodel.captures) == 4


def test_autocast_is_another_capture():
    model, x = Scaled(), torch.randn(2, 4)
    xmodel = lrp_fx.convert(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert xmodel(x).dtype is model(x).dtype is torch.bfloat16
    assert xmodel(x).dtype is torch.float32 and len(xmodel.captures) == 2


def _together(*jobs):
    errors = []

    def guarded(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def often():
    """Threads take turns very often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_calls_use_the_graph_that_they_found(often):
    torch.manual_seed(0)
    model = Branching().eval()
    jobs = [torch.randn(2, 4).abs() * (1 if k % 2 else -1) for k in range(4)]
    xmodel = lrp_fx.convert(model)
    wanted = [(model(x), xmodel.explain(x).relevance["x"]) for x in jobs]

    def work(start):
        for k in range(150):
            x, (output, relevance) = jobs[(start + k) % 4], wanted[(start + k) % 4]
            assert torch.equal(xmodel(x), output)
            assert torch.equal(xmodel.explain(x).relevance["x"], relevance)

    _together(*(lambda k=k: work(k) for k in range(6)))
    assert len(xmodel.captures) == 2


def test_threads_that_capture_at_once_leave_everything_as_it_was():
    model, inputs = build("llama2")
    model.train()
    xmodels = [lrp_fx.convert(model) for _ in range(2)]
    _together(*(lambda x=x: x.explain(**inputs) for x in (*xmodels, xmodels[0])))
    assert [len(x.captures) for x in xmodels] == [1, 1]
    assert all(m.training for m in model.modules()) and model.config.use_cache
    alone = lrp_fx.convert(model).explain(**inputs).relevance["input_ids"]
    for xmodel in xmodels:
        assert torch.equal(xmodel.explain(**inputs).relevance["input_ids"], alone)


@pytest.mark.slow
def test_a_capture_is_not_seen_by_a_thread_that_trains_the_model():
    model, inputs = build("llama2")
    model.train()
    flags, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            flags.add((all(m.training for m in model.modules()), model.config.use_cache, model._forward_hooks == {}))

    def capture():
        try:
            for route in ("export", "trace"):
                lrp_fx.convert(model, **inputs, capture=route).explain(**inputs)
        finally:
            done.set()

    _together(watch, capture)
    assert flags == {(True, True, True)}
