"""Tensors inside objects that pytree does not know are inputs, by their own names, and the objects stay as they were."""

import collections
import copy
import dataclasses
import threading

import pytest
import torch
import transformers
from models import few
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError

D = torch.float64


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    scale: float = 1.0


class Plain:
    """Unhashable, and with a repr that hides its contents."""

    __hash__ = None

    def __init__(self, x, scale=1.0):
        self.x, self.scale = x, scale

    def __eq__(self, other):
        return self is other

    def __repr__(self):
        return "Plain()"


class Slots:
    __slots__ = ("scale", "x")

    def __init__(self, x, scale=1.0):
        self.x, self.scale = x, scale


class Nested:
    """Lists, dicts and itself inside."""

    def __init__(self, x, scale=1.0):
        self.inner, self.table, self.me = [Plain(x)], {"scale": scale}, self

    @property
    def x(self):
        return self.inner[0].x

    @property
    def scale(self):
        return self.table["scale"]


class Mapped(collections.UserDict):
    def __init__(self, x, scale=1.0):
        super().__init__({"x": x, "scale": scale})

    x = property(lambda self: self["x"])
    scale = property(lambda self: self["scale"])


class Own(dict):
    """A mapping of one's own."""

    def __init__(self, x=None, scale=1.0):
        super().__init__(x=x, scale=scale)

    x = property(lambda self: self["x"])
    scale = property(lambda self: self["scale"])


KINDS = {
    Sample: "batch.x",
    Plain: "batch.x",
    Slots: "batch.x",
    Nested: "batch.x",
    Mapped: "batch['x']",
    Own: "batch.x",
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, batch, weight):
        return self.b(torch.relu(self.a(batch.x))) * weight * batch.scale


@pytest.mark.parametrize("capture", few(["export", "trace"], "export"))
@pytest.mark.parametrize("kind, name", KINDS.items(), ids=lambda k: getattr(k, "__name__", ""))
def test_what_is_inside_is_an_input(kind, name, capture):
    model, weight = Model().to(D).eval(), torch.ones(2, 1, dtype=D)
    first, second = torch.randn(2, 4, dtype=D), torch.randn(2, 4, dtype=D)
    xmodel = lrp_fx.convert(model, kind(first), weight, capture=capture)
    for x in (first, second):
        given = kind(x)
        torch.testing.assert_close(xmodel(given, weight), model(given, weight), rtol=1e-12, atol=1e-12)
        found = xmodel.explain(given, weight, target=1)
        assert set(found.relevance) == {name, "weight"}
        assert found.ledger.balance < 1e-12
        gradient = torch.autograd.functional.jacobian(lambda z: model(kind(z), weight)[:, 1].sum(), x)
        by_gradient = xmodel.explain(given, weight, target=1, rules="gradient").relevance[name]
        torch.testing.assert_close(by_gradient, x * gradient, rtol=1e-10, atol=1e-12)
        assert given.x is x
    assert len(xmodel.captures) == 1
    other = kind(first, 3.0)  # what is no tensor is told by its value
    torch.testing.assert_close(xmodel(other, weight), model(other, weight), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(xmodel(kind(first), weight), model(kind(first), weight), rtol=1e-12, atol=1e-12)
    assert xmodel.verify(kind(first), weight, target=1).passed
    many = xmodel.explain(kind(second), weight, targets=[0, 1])
    torch.testing.assert_close(many.relevance[name][1], found.relevance[name], rtol=1e-9, atol=1e-11)
    low = xmodel.explain(kind(second), weight, target=1, memory="low")
    torch.testing.assert_close(low.relevance[name], found.relevance[name], rtol=1e-9, atol=1e-11)
    lowered = xmodel.lower(kind(first), weight, target=1)
    again = lowered(kind(second), weight, target=1)
    torch.testing.assert_close(again.relevance[name], found.relevance[name], rtol=1e-9, atol=1e-11)


class Growing(nn.Module):
    """Reads a cache, writes into it and lets it grow; returns it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x, cache=None):
        cache = Plain(x.new_zeros(x.shape[0], 1, 4)) if cache is None else cache
        cache.x[:, 0] += 1
        cache.x = torch.cat([cache.x, self.a(x)[:, None]], 1)
        cache.scale += 1
        return cache.x.sum(1), cache


@pytest.mark.parametrize("capture", ["auto", "trace"])
def test_what_a_run_changes_stays_as_it_was(capture):
    model, x = Growing().to(D).eval(), torch.randn(2, 4, dtype=D)
    xmodel = lrp_fx.convert(model, capture=capture)
    for length in (1, 2, 3):
        cache = Plain(torch.randn(2, length, 4, dtype=D), float(length))
        held, values = cache.x, cache.x.clone()
        want, grown = model(x, copy.deepcopy(cache))
        for _ in range(2):
            got, returned = xmodel(x, cache=cache)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(returned.x, grown.x, rtol=1e-12, atol=1e-12)
            assert type(returned) is Plain and returned.scale == grown.scale
        found = xmodel.explain(x, cache=cache, target=lambda out: out[0][:, 1])
        assert found.ledger.balance < 1e-12
        torch.testing.assert_close(found.relevance["cache.x"].sum((1, 2)), values[..., 1].sum(1), rtol=1e-9, atol=1e-11)
        assert cache.x is held and torch.equal(held, values) and cache.scale == length
    assert torch.equal(xmodel(x)[0], model(x)[0])


def test_two_arguments_that_hold_one_structure():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a.x * 2 + b.x * b.scale

    x, y = torch.randn(2, 3, dtype=D), torch.randn(2, 3, dtype=D)
    xmodel = lrp_fx.convert(Sum(), Plain(x), Sample(y))
    found = xmodel.explain(Plain(x), Sample(y), target=0).relevance
    torch.testing.assert_close(found["a.x"][:, 0], 2 * x[:, 0])
    torch.testing.assert_close(found["b.x"][:, 0], y[:, 0])


def test_what_cannot_be_taken_apart_is_named():
    class Locked:
        def __init__(self, x):
            self.x, self.lock = x, threading.Lock()

    x, weight = torch.randn(2, 4, dtype=D), torch.ones(2, 1, dtype=D)
    with pytest.raises(InputError, match=r"Locked.*\n.*register_pytree_node\(Locked"):
        lrp_fx.convert(Model().to(D), Locked(x), weight)


def test_numpy_arrays_are_told_by_their_values():
    class Table(nn.Module):
        def forward(self, x, table):
            return x * torch.from_numpy(table)

    x, table = torch.randn(2, 3000), torch.rand(3000).numpy()
    xmodel = lrp_fx.convert(Table(), x, table)
    other = table.copy()
    other[1500] = 7  # where repr shows dots
    assert torch.equal(xmodel(x, other), Table()(x, other))


def test_a_cache_of_transformers():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(D).eval()
    ids = torch.randint(3, 50, (1, 9))
    xmodel = lrp_fx.convert(model)
    for known in (4, 5):
        with torch.no_grad():
            cache = model(input_ids=ids[:, :known], use_cache=True).past_key_values
            given = {"input_ids": ids[:, known : known + 1], "past_key_values": cache}
            want = model(**copy.deepcopy(given)).logits
        torch.testing.assert_close(xmodel(**given).logits, want, rtol=1e-10, atol=1e-12)
        found = xmodel.explain(**given, target=7)
        assert found.ledger.balance < 1e-9 and cache.get_seq_length() == known
        names = {f"past_key_values.layers[{i}].{part}" for i in range(2) for part in ("keys", "values")}
        assert set(found.relevance) == {"input_ids", *names}
        assert all(found.relevance[name].abs().sum() > 0 for name in names)


def test_a_batch_of_a_tokenizer():
    model = nn.Module.__new__(type("Reader", (nn.Module,), {"forward": lambda self, b: self.e(b["ids"]).sum(1)}))
    nn.Module.__init__(model)
    model.e = nn.Embedding(9, 3, dtype=D)
    batch = transformers.BatchEncoding({"ids": torch.randint(0, 9, (2, 5))})
    found = lrp_fx.convert(model, batch).explain(batch, target=0)
    torch.testing.assert_close(found.relevance["b['ids']"].sum(1), model(batch)[:, 0].detach())
