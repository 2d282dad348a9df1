"""Many threads at once: captures, explanations and calls, of one model and of several, while one trains."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx


class Branching(nn.Module):
    """Two branches, chosen by a value: a recorded run each."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x) * 10 + 100


class Sized(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(5, 5), nn.GELU(), nn.Dropout(0.3))])
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layers(x).mean(1) if x.shape[0] > 1 else self.layers(x)[:, -1])


@pytest.fixture(autouse=True)
def _switch_often(monkeypatch):
    monkeypatch.delenv("LRP_FX_CACHE", raising=False)  # every thread captures
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*jobs):
    """Results of jobs that begin together; the first error is raised."""
    start = threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [f.result() for f in [pool.submit(run, job) for job in jobs]]


def test_warm_calls_stay_on_their_branches():
    torch.manual_seed(0)
    model = Branching().double().eval()
    given = [torch.rand(2, 4, dtype=torch.float64) * (1 if i % 2 else -1) for i in range(4)]
    xmodel = lrp_fx.convert(model)
    outputs = [model(x).detach() for x in given]
    wanted = [xmodel.explain(x, target=1).relevance["x"] for x in given]

    def work(first):
        for turn in range(60):
            i = (turn + first) % len(given)
            assert torch.equal(xmodel(given[i]).detach(), outputs[i])
            assert torch.equal(xmodel.explain(given[i], target=1).relevance["x"], wanted[i])

    at_once(*[lambda k=k: work(k) for k in range(6)])


def test_captures_at_once_of_one_conversion():
    torch.manual_seed(0)
    model = Sized(2).double().eval()
    given = [torch.randn(b, s, 5, dtype=torch.float64) for b, s in ((1, 4), (2, 4), (3, 7), (1, 9), (2, 1), (4, 3))]
    wanted = [lrp_fx.convert(model).explain(x, target=1).relevance["x"] for x in given]
    outputs = [model(x).detach() for x in given]
    xmodel = lrp_fx.convert(model)
    found = at_once(*[lambda x=x: (xmodel.explain(x, target=1).relevance["x"], xmodel(x).detach()) for x in given])
    for (relevance, output), r, y in zip(found, wanted, outputs, strict=True):
        assert torch.allclose(relevance, r, rtol=1e-12, atol=1e-14)
        assert torch.allclose(output, y, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_conversions_at_once_of_several_models():
    names = ("llama2", "bert-classifier", "resnet", "mha", "encoder")
    built = {name: build(name) for name in names}
    wanted = {}
    for name, (model, inputs) in built.items():
        attribution = lrp_fx.convert(model).explain(**inputs, rules="cp_lrp")
        wanted[name] = attribution.relevance, attribution.ledger.target

    def work(name):
        model, inputs = built[name]
        attribution = lrp_fx.convert(model).explain(**inputs, rules="cp_lrp")
        assert attribution.ledger.balance < 1e-9
        return attribution.relevance, attribution.ledger.target

    for name, (relevance, target) in zip(names * 2, at_once(*[lambda n=n: work(n) for n in names * 2]), strict=True):
        assert abs(target - wanted[name][1]) < 1e-9
        for key, r in wanted[name][0].items():
            assert torch.allclose(relevance[key], r, rtol=1e-9, atol=1e-12)
    model, inputs = build("gpt2")  # and nothing is poisoned for what comes after
    assert lrp_fx.convert(model).explain(**inputs).ledger.balance < 1e-9


def flags(model):
    return (
        tuple(m.training for m in model.modules()),
        tuple(p.requires_grad for p in model.parameters()),
        getattr(getattr(model, "config", None), "use_cache", None),
        getattr(getattr(model, "config", None), "_attn_implementation", None),
    )


@pytest.mark.parametrize("name", few(["plain", "llama2"], "plain"))
def test_training_sees_no_flag_flip(name):
    torch.manual_seed(0)
    if name == "plain":
        model, inputs = Sized(3).double(), {"x": torch.randn(2, 4, 5, dtype=torch.float64)}
    else:
        model, inputs = build(name)
    model.train()
    before, seen, done = flags(model), set(), threading.Event()
    loss = []

    def train():
        while not done.is_set():
            seen.add(flags(model))
            output = model(**inputs)
            seen.add(flags(model))
            output = output if isinstance(output, torch.Tensor) else output.logits
            output.pow(2).mean().backward()
            model.zero_grad()
            loss.append(float(output.detach().sum()))

    def explain():
        found = [lrp_fx.convert(model).explain(**inputs) for _ in range(3)]
        return [f.ledger.balance for f in found]

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        balances = at_once(explain, explain)
    finally:
        done.set()
        trainer.join()
    assert max(b for found in balances for b in found) < 1e-9
    assert len(loss) > 2 and len(set(loss)) > (1 if name == "plain" else 0)  # dropout is drawn anew in training mode
    assert seen == {before} and flags(model) == before


def test_a_failing_capture_beside_others_poisons_nothing():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    torch.manual_seed(0)
    model, x = Sized(2).double().train(), torch.randn(2, 4, 5, dtype=torch.float64)
    wanted = lrp_fx.convert(model).explain(x, target=1).relevance["x"]

    def broken():
        for _ in range(3):
            with pytest.raises(lrp_fx.errors.CaptureError, match="broken"):
                lrp_fx.convert(Broken(), x)

    def sound():
        return [lrp_fx.convert(model).explain(x, target=1).relevance["x"] for _ in range(3)]

    for found in at_once(broken, sound, sound, broken)[1:3]:
        assert all(torch.allclose(r, wanted, rtol=1e-12, atol=1e-14) for r in found)
    assert model.training and lrp_fx.convert(model).explain(x, target=1).ledger.balance < 1e-9
