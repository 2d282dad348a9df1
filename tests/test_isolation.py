"""The user's model and torch's global state are as they were; conversions do not see each other."""

import copy

import pytest
import torch
from models import build, few
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lrp_fx


def snapshot(model):
    return {
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "methods": {n: (type(m), type(m).forward, m.__dict__.get("forward")) for n, m in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "registry": {k: ALL_ATTENTION_FUNCTIONS[k] for k in ALL_ATTENTION_FUNCTIONS.valid_keys()},
        "config": copy.deepcopy(model.config.to_dict()) if hasattr(model, "config") else None,
        "experts": getattr(getattr(model, "config", None), "_experts_implementation", None),
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "torch": (
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(),
            torch.is_inference_mode_enabled(), torch.get_rng_state().sum().item(),
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", few(["llama2", "mixtral", "flan-t5", "bert", "resnet", "encoder"], "bert", "resnet", "encoder")
)
def test_the_model_is_untouched(name):
    model, inputs = build(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    xmodel = lrp_fx.convert(model, **inputs)
    xmodel(**inputs)
    attribution = xmodel.explain(**inputs)
    assert attribution.ledger.balance < 1e-9
    xmodel.verify(**inputs)
    after = snapshot(model)
    for key, value in before.items():
        if key == "state":
            assert all(torch.equal(v, after["state"][k]) for k, v in value.items())
        else:
            assert after[key] == value, key


@pytest.mark.parametrize("name", few(["llama2", "mixtral", "bert", "resnet"], "bert", "resnet"))
def test_parameters_are_shared_never_copied(name):
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs)
    mine = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    used = [*xmodel.graph_module.parameters(), *xmodel.graph_module.buffers()]
    assert used and all(p.data_ptr() in mine for p in used if p.dim())
    before = xmodel.explain(**inputs).target
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert not torch.allclose(xmodel.explain(**inputs).target, before)  # follows the model's weights


def test_two_conversions_of_one_model_coexist():
    model, inputs = build("llama2")
    attn, cp = lrp_fx.convert(model, **inputs), lrp_fx.convert(model, **inputs, rules="cp_lrp")
    first, second = attn.explain(**inputs).relevance["input_ids"], cp.explain(**inputs).relevance["input_ids"]
    assert not torch.allclose(first, second)
    assert torch.equal(attn.explain(**inputs).relevance["input_ids"], first)
    assert torch.equal(attn.explain(**inputs, rules="cp_lrp").relevance["input_ids"], second)
    assert torch.equal(cp.explain(**inputs).relevance["input_ids"], second)


def test_dropout_is_inert_and_batch_norm_uses_its_statistics():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.randn(6, 4)
    xmodel = lrp_fx.convert(model, x)
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(xmodel(x), expected)
    assert torch.equal(xmodel.explain(x).relevance["input"], xmodel.explain(x).relevance["input"])
    assert model.training


def test_explains_under_no_grad_and_inference_mode():
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs)
    expected = xmodel.explain(**inputs).relevance["input_ids"]
    with torch.no_grad():
        assert torch.equal(xmodel.explain(**inputs).relevance["input_ids"], expected)
    with torch.inference_mode():
        inside = {k: v.clone() for k, v in inputs.items()}
        assert torch.equal(xmodel.explain(**inside).relevance["input_ids"].clone(), expected)


@pytest.mark.parametrize("name", few(["llama2", "flan-t5", "encoder"], "llama2", "flan-t5"))
def test_all_of_an_explanation_may_be_made_in_inference_mode(name):
    """The first check and the ledger run operators again: their gradients are none where nothing is recorded. And what the
    caller switched off is no part of the model."""
    model, inputs = build(name)
    outside = lrp_fx.convert(model).explain(**inputs)
    with torch.inference_mode():
        inside = {k: v.clone() for k, v in inputs.items()}
        xmodel = lrp_fx.convert(model)
        attribution = xmodel.explain(**inside)
        ledger = attribution.ledger
        many = xmodel.explain(**inside, targets=[0, 1])
    assert ledger.balance < 1e-9
    assert dict(ledger) == pytest.approx(dict(outside.ledger), abs=1e-9)
    for key, relevance in outside.relevance.items():
        torch.testing.assert_close(attribution.relevance[key].clone(), relevance)
        assert many.relevance[key].shape == (2, *relevance.shape)


def test_frozen_parameters_and_unfrozen_ones_explain_alike():
    model, inputs = build("llama2")
    expected = lrp_fx.convert(model, **inputs).explain(**inputs).relevance["input_ids"]
    model.requires_grad_(False)
    torch.testing.assert_close(lrp_fx.convert(model, **inputs).explain(**inputs).relevance["input_ids"], expected)


def test_follows_the_model_to_another_precision():
    model, inputs = build("llama2", torch.float32)
    xmodel = lrp_fx.convert(model, **inputs)
    assert xmodel.explain(**inputs).target.dtype is torch.float32
    model.double()
    assert xmodel.explain(**inputs).target.dtype is torch.float64


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, scale):
        scale += 1
        return self.linear(x.mul_(2).tanh()) * scale


@pytest.mark.parametrize("capture", ["export", "trace"])
def test_inputs_are_as_they_were(capture):
    """A model that writes to its inputs is run on copies, also when a change of the model makes a capture anew."""
    model = WritesToItsInput().double()
    x, scale = torch.randn(2, 4, dtype=torch.float64), torch.tensor([2])
    values = x.clone()
    xmodel = lrp_fx.convert(model, x, scale, rules="gradient", capture=capture)
    for _ in range(2):
        relevance = xmodel.explain(x, scale, target=0).relevance["x"]
        assert xmodel.verify(x, scale).passed
        assert torch.equal(x, values) and scale.item() == 2
        leaf = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf * 1, scale.clone())[:, 0].sum(), leaf)
        torch.testing.assert_close(relevance, gradient * values, rtol=1e-9, atol=1e-12)
        model.linear = nn.Linear(4, 3).double()
