"""Results: samples are slices of a batch, sums stay sums, and nothing is held but tensors."""

import gc
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import lrp_fx
from lrp_fx.errors import InputError, LatentError
from lrp_fx.explain.target_types import spoken
from lrp_fx.results import Context, Tokens, computed_ledger
from lrp_fx.results.weights_digest import model_fingerprint


class Pooled(nn.Module):
    """Ids -> classes, with biases."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.layer(self.embedding(ids))).mean(1))


@pytest.fixture(scope="module")
def xmodel():
    torch.manual_seed(0)
    return lrp_fx.convert(Pooled().double())


def ids(batch=3, length=5):
    return torch.arange(batch * length).reshape(batch, length) % 20


def close(a, b, tolerance=1e-12):
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    assert a.shape == b.shape or not a.dim() or not b.dim()
    assert float((a - b).abs().max()) < tolerance


def test_a_sample_is_a_slice_of_the_batch(xmodel):
    whole = xmodel.explain(ids(), at="layer")
    assert len(whole) == 3 and [len(one) for one in whole] == [1, 1, 1] and whole[:] is whole
    for i, one in enumerate(whole):
        alone = xmodel.explain(ids()[i : i + 1], at="layer", target=whole.output[i : i + 1].argmax(-1))
        for part in ("relevance", "latents", "sources"):
            found, wanted = getattr(one, part), getattr(alone, part)
            assert found.keys() == wanted.keys()
            for name in wanted:
                close(found[name], wanted[name])
        close(one.target, alone.target)
        close(one.output, alone.output)
        assert torch.equal(one.inputs["ids"], ids()[i : i + 1])
    assert torch.equal(whole[[2, 0]].target, whole.target[[2, 0]]) and torch.equal(whole[-1].target, whole.target[2:])
    assert torch.equal(whole[np.array([True, False, True])].target, whole.target[[0, 2]])
    assert len(whole[torch.tensor([], dtype=torch.long)]) == 0
    with pytest.raises(IndexError, match="there are 3"):
        whole[3]


def test_the_ledger_of_a_slice_is_that_of_its_samples(xmodel):
    whole = xmodel.explain(ids(), target=1)
    parts = [one.ledger for one in whole]
    for i, ledger in enumerate(parts):
        alone = xmodel.explain(ids()[i : i + 1], target=1).ledger
        assert ledger.balance < 1e-12
        for category in alone:
            close(ledger[category], alone[category])
    for category in whole.ledger:
        close(sum(p[category] for p in parts), whole.ledger[category])
    close(whole[1:][1].ledger["bias"], parts[2]["bias"])  # a slice of a slice


def test_a_shared_input_cannot_be_divided_among_samples():
    torch.manual_seed(0)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x, bias):
            return self.head(x + bias)

    found = lrp_fx.convert(Shared()).explain(torch.randn(3, 4), torch.randn(4), target=0)
    with pytest.raises(InputError, match="'bias' of shape"):
        found[0]


@pytest.mark.parametrize("by", ["target", "magnitude", "largest"])
def test_normalize_scales_everything_alike(xmodel, by):
    found = xmodel.explain(ids(), at="layer")
    scaled = found.normalize(by)
    for i, one in enumerate(scaled):
        r = one.relevance["ids"]
        close({"target": one.target.sum(), "magnitude": r.abs().sum(), "largest": r.abs().max()}[by], 1.0)
        close(one.ledger.target, one.target.sum())
        close(one.ledger["input"], one.total.sum())
        assert one.ledger.balance < 1e-12
        close(one.latents["layer"] * found.target[i], found.latents["layer"][i : i + 1] * one.target, 1e-9)
    with pytest.raises(InputError, match="choose one of"):
        found.normalize("mean")
    with pytest.raises(InputError, match="sample 1 cannot be scaled"):
        (found * torch.tensor([1.0, 0.0, 1.0])).normalize()


def test_sums_and_differences_are_those_of_the_targets(xmodel):
    a, b = (xmodel.explain(ids(), target=c, at="layer") for c in (0, 2))
    contrast = xmodel.explain(ids(), target=lrp_fx.Contrast(0, 2), at="layer")
    difference = a - b
    close(difference.relevance["ids"], contrast.relevance["ids"])
    close(difference.latents["layer"], contrast.latents["layer"])
    close(difference.target, contrast.target)
    for category in contrast.ledger:
        close(difference.ledger[category], contrast.ledger[category])
    for name in contrast.sources:
        close(difference.sources[name], contrast.sources[name])
    close(difference[1].ledger["bias"], contrast[1].ledger["bias"])
    double = 2 * a
    close(double.relevance["ids"], (a + a).relevance["ids"])
    close(double.ledger["input"], 2 * a.ledger["input"])
    weights = torch.tensor([1.0, -2.0, 0.5])
    weighed = a * weights
    close(weighed.ledger.target, (a.target * weights).sum())
    close(weighed.ledger["input"], weighed.relevance["ids"].sum())
    close((-a).target, -a.target)
    with pytest.raises(InputError, match="other sizes"):
        a + xmodel.explain(ids(2), target=0, at="layer")
    with pytest.raises(InputError, match="does not add"):
        a + xmodel.explain(ids(), targets=[0, 1])


def test_many_targets_and_their_samples(xmodel):
    many = xmodel.explain(ids(), targets=[0, 2], at="layer")
    assert len(many) == 3 and many.count == 2
    for number in range(2):
        one = xmodel.explain(ids(), target=2 * number)
        close(many.of(number).relevance["ids"], one.relevance["ids"])
        close(many[1].of(number).target, one.target[1:2])
        close(many[1:].of(number).relevance["ids"], one.relevance["ids"][1:])
    close(many.summed().target, many.target.sum(0))
    close((many * torch.tensor([1.0, 2.0, 3.0])).target[1, 2], 3 * many.target[1, 2])
    assert many.target_names == ("0", "2") and many.context.fingerprint() == model_fingerprint(xmodel.model)
    with pytest.raises(LatentError, match=r"explain\(target"):
        many.without_inputs().of(0).ledger  # noqa: B018
    with pytest.raises(IndexError):
        many.of(2)
    assert not xmodel.explain(ids(), targets=[0, 2], keep_inputs=False).inputs


@pytest.mark.parametrize(
    ("target", "words"),
    [(None, ""), (3, "3"), (torch.tensor([1, 2]), "[1, 2]"), ((-1, torch.tensor([4])), "(-1, [4])"), (max, "max"),
     (lrp_fx.Contrast(1), "Contrast(chosen=1)"), (lrp_fx.Pixels(torch.tensor([1, 0])), "Pixels(chosen=[1, 0])")],
)  # fmt: skip
def test_a_result_says_what_was_asked(target, words):
    assert spoken(target) == words


def test_other_precisions_devices_and_libraries(xmodel):
    found = xmodel.explain(ids(), at="layer")
    single = found.to(torch.float32)
    assert single.relevance["ids"].dtype is single.latents["layer"].dtype is single.output.dtype is torch.float32
    assert single.inputs["ids"].dtype is torch.long
    assert all(r.dtype is torch.float32 for r in single.sources.values() if r.is_floating_point())
    assert found.cpu().target.device.type == "cpu" and found.to("meta").notes == ()
    arrays = found.to(torch.bfloat16).numpy()
    assert arrays["ids"].dtype == np.float32 and arrays["ids"].shape == (3, 5)


def test_pickled_results_are_whole(xmodel):
    found = xmodel.explain(ids(), target=1).with_context(Context(labels=("a", "b", "c"), question="1"))
    copy = pickle.loads(pickle.dumps(found))
    assert torch.equal(copy.relevance["ids"], found.relevance["ids"]) and copy.context.labels == ("a", "b", "c")
    assert dict(copy.ledger) == dict(found.ledger) and torch.equal(copy.output, found.output)
    with pytest.raises(LatentError, match="one ledger for all its samples"):
        copy[0].ledger  # noqa: B018
    assert copy[0].total.shape == (1,)
    doubled = copy * 2.0
    close(doubled.ledger["input"], 2 * found.ledger["input"])
    one = pickle.loads(pickle.dumps(found[1]))
    close(one.ledger["input"], one.total.sum())


def places(*tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def held_by(result):
    """Storages of all tensors with values that a result keeps alive, but for those of modules."""
    seen, stack, tensors = set(), [result], []
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (type, type(gc), nn.Module)):
            continue
        if isinstance(item, dict) and "__builtins__" in item:  # what a function sees of its module
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor) and not isinstance(item, FakeTensor):
            assert item.grad_fn is None, "a graph of autograd is kept"
            tensors.append(item)
        stack += gc.get_referents(item)
    return places(*tensors)


def test_no_more_memory_is_held_than_that_of_the_tensors(xmodel):
    found = xmodel.explain(ids())
    shown = places(found.relevance["ids"], found.target, found.output, found.inputs["ids"], *found._sources.values())
    weights = places(*xmodel.parameters(), *xmodel.buffers())
    assert held_by(found) - weights == shown - weights
    lean = xmodel.explain(ids(), keep_inputs=False)
    assert held_by(lean) == places(lean.relevance["ids"], lean.target, lean.output) and not lean.inputs
    for part in ("ledger", "sources"):
        with pytest.raises(LatentError, match="keep_inputs=False"):
            getattr(lean, part)


def test_a_ledger_that_was_computed_stays(xmodel):
    found = xmodel.explain(ids(1))
    ledger = found.ledger
    assert found.with_context(Context()).ledger is ledger and found.without_inputs().ledger is ledger
    assert found.to(torch.float32).ledger is ledger
    assert computed_ledger(ledger)(None) is ledger


def test_ids_are_tokens_where_nothing_more_is_known(xmodel):
    found = xmodel.explain(ids(2))
    assert found.tokens()[1].texts == ("5", "6", "7", "8", "9")
    named = found.with_context(Context(tokens={"ids": (Tokens.plain("abcde"), Tokens.plain("fghij"))}))
    assert named[1].tokens()[0].texts == tuple("fghij")
    with pytest.raises(InputError, match="has no tokens"):
        found.tokens("x")
    with pytest.raises(InputError, match="2 tokens"):
        Tokens(("a", "b"), (False,), (False, False))
