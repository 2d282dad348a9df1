"""A converted module stands for its model: attributes, state, moving, copies, and what wraps a model."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from models import build
from torch import nn

import lrp_fx


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_attributes_that_it_lacks_are_the_model_s():
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs)
    assert xmodel.config is model.config and xmodel.dtype == model.dtype and xmodel.device == model.device
    assert xmodel.get_input_embeddings() is model.get_input_embeddings()
    assert torch.equal(
        xmodel.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False),
        model.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False),
    )
    with pytest.raises(AttributeError):
        xmodel.no_such_attribute  # noqa: B018


def test_state_and_parameters_are_the_model_s():
    model = net()
    xmodel = lrp_fx.convert(model, X)
    assert list(xmodel.state_dict()) == list(model.state_dict())
    assert [id(p) for p in xmodel.parameters()] == [id(p) for p in model.parameters()]
    xmodel.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    state = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    xmodel.load_state_dict(state)
    assert bool((model[0].weight == 1).all())


def test_moving_it_moves_all_of_the_model():
    model = net()
    xmodel = lrp_fx.convert(model, X)
    before = xmodel.explain(X).relevance["input"]
    assert xmodel.to(torch.float64) is xmodel
    assert {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} == {torch.float64}
    assert torch.allclose(xmodel.explain(X.double()).relevance["input"].float(), before, 1e-4, 1e-5)
    xmodel.train()
    assert xmodel.training and not model.training


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": lambda value: _through_a_file(value),
}


def _through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("captured", [True, False])
def test_copies_explain_alike_and_have_weights_of_their_own(way, captured):
    xmodel = lrp_fx.convert(net(), *([X] if captured else []), rules="cp_lrp")
    other = COPIES[way](xmodel)
    before = xmodel.explain(X).relevance["input"]
    assert other.ruleset.key == xmodel.ruleset.key and torch.equal(other.explain(X).relevance["input"], before)
    with torch.no_grad():
        other.model[3].weight.mul_(2)
    assert not torch.equal(other.explain(X).relevance["input"], before)
    assert torch.equal(xmodel.explain(X).relevance["input"], before)


@pytest.mark.parametrize("way", COPIES)
def test_results_can_be_copied(way):
    xmodel = lrp_fx.convert(net(), X)
    attribution = xmodel.explain(X, at="0")
    other = COPIES[way](attribution)
    assert torch.equal(other.relevance["input"], attribution.relevance["input"])
    assert torch.equal(other.latents["0"], attribution.latents["0"]) and torch.equal(other.output, attribution.output)
    assert other.ledger.total == attribution.ledger.total and list(other.sources) == list(attribution.sources)
    assert COPIES[way](attribution.ledger).total == attribution.ledger.total
    conditional = COPIES[way](xmodel.explain(X, condition={"0": [1]}))
    with pytest.raises(lrp_fx.errors.LatentError):
        conditional.ledger  # noqa: B018


class Explained(torch.utils.data.Dataset):
    def __init__(self, xmodel):
        self.xmodel = xmodel

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.xmodel.explain(X + index)


def test_workers_of_a_loader_explain():
    xmodel = lrp_fx.convert(net(), X)
    context = multiprocessing.get_context("fork")
    loader = torch.utils.data.DataLoader(
        Explained(xmodel), batch_size=None, num_workers=1, multiprocessing_context=context
    )
    for index, attribution in enumerate(loader):
        assert torch.equal(attribution.relevance["input"], xmodel.explain(X + index).relevance["input"])


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "script": lambda model: torch.jit.script(model),
    "frozen script": lambda model: torch.jit.freeze(torch.jit.script(model)),
    "traced": lambda model: torch.jit.trace(model, X),
}


@pytest.mark.parametrize("way", WRAPPED)
def test_wrapped_models_are_what_they_wrap(way):
    model = net()
    wanted = lrp_fx.convert(model).explain(X, target=1)
    attribution = lrp_fx.convert(WRAPPED[way](model)).explain(X, target=1)
    assert torch.allclose(attribution.target, wanted.target, 1e-5)
    (found,) = attribution.relevance.values()
    assert torch.allclose(found, wanted.relevance["input"], 1e-4, 1e-6)
