"""State that runs change, wherever a model keeps it: as before afterwards, and of the model's present at every call."""

import collections
import copy
import types

import numpy as np
import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.capture.snapshot import Snapshot

X = torch.ones(2, 4, dtype=torch.float64)


class Held:
    def __init__(self):
        self.number, self.tensor = 1.0, torch.ones(1, dtype=torch.float64)


def one():
    return torch.ones(1, dtype=torch.float64)


def appended(entries):
    entries.append(entries[-1] + 1)
    return float(entries[-1])


def counted(entries):
    entries["n"] += 1
    return float(entries["n"])


def joined(entries):
    entries.add(len(entries))
    return float(len(entries))


def raised(held):
    held.number += 1
    return held.number


def incremented(array):
    array += 1
    return float(array.reshape(-1)[0])


#: name -> (what makes the state, what a run writes and reads)
STATES = {
    "list": (lambda: [1.0], appended),
    "list in a dict": (lambda: {"a": [1.0]}, lambda h: appended(h["a"])),
    "deque": (lambda: collections.deque([1.0], maxlen=3), appended),
    "set": (lambda: {7}, joined),
    "counter": (collections.Counter, counted),
    "list in a defaultdict": (lambda: collections.defaultdict(lambda: [1.0]), lambda h: appended(h["new"])),
    "bytearray": (lambda: bytearray(b"a"), appended),
    "tensor in a list": (lambda: [one()], lambda h: h[0].add_(1)),
    "tensor in a dict": (lambda: {"a": one()}, lambda h: h["a"].mul_(2)),
    "tensor in a tuple": (lambda: (one(),), lambda h: h[0].add_(1)),
    "object": (Held, raised),
    "tensor in an object": (Held, lambda h: h.tensor.add_(1)),
    "tensor in a namespace": (lambda: types.SimpleNamespace(t=one()), lambda h: h.t.add_(1)),
    "array": (lambda: np.ones(2), incremented),
    "array without axes": (lambda: np.ones(()), incremented),
    "array in a list": (lambda: [np.ones(1)], lambda h: incremented(h[0])),
}


class Stateful(nn.Module):
    def __init__(self, kind, branches):
        super().__init__()
        torch.manual_seed(0)
        make, self.step = STATES[kind]
        self.linear, self.state, self.branches = nn.Linear(4, 3).double(), make(), branches

    def forward(self, x):
        y = self.linear(x)
        if self.branches and y.sum() > 1e6:  # reads a value, so that the run is recorded
            y = -y
        return y * self.step(self.state)


def plain(state):
    """A copy of the state that can be compared."""
    return repr(vars(state) if hasattr(state, "__dict__") and not isinstance(state, dict) else copy.deepcopy(state))


@pytest.mark.parametrize("branches", [False, True], ids=["exported", "recorded"])
@pytest.mark.parametrize("kind", STATES)
def test_state_is_as_before_and_counts_as_it_is(kind, branches):
    model, twin = Stateful(kind, branches).eval(), Stateful(kind, branches).eval()
    xmodel = lrp_fx.convert(model)
    for _ in range(3):
        before = plain(model.state)
        attribution = xmodel.explain(X, target=1)
        assert plain(model.state) == before
        expected = twin(X)[:, 1]
        assert (attribution.target - expected).abs().max() < 1e-9
        model(X)  # moves on, as its twin did


def test_what_belongs_to_the_process_is_left_alone():
    import logging

    model = nn.Linear(2, 2)
    model.log, model.state = logging.getLogger("of the process"), [1]
    level = model.log.level
    contents = Snapshot(model)
    model.log.setLevel(logging.DEBUG)
    model.state.append(2)
    contents.restore()
    assert model.state == [1] and model.log.level == logging.DEBUG
    model.log.setLevel(level)
