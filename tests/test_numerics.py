"""Half precision: finite at any input, and close to double precision."""

import pytest
import torch
import transformers as tf
from models import GQA, build, ids
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.errors import InputError, NumericalError

FUNCTIONS = [
    F.silu, F.gelu, F.relu, torch.tanh, torch.sigmoid, F.softplus, torch.exp, F.mish, F.elu, F.hardswish, torch.erf, torch.cos,
    lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.rms_norm(x, x.shape[-1:]), lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: F.normalize(x, dim=-1, eps=1e-3), lambda x: x.softmax(-1), lambda x: x * x, lambda x: x @ x.transpose(-1, -2),
]  # fmt: skip


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.inner, self.outer = function, nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.outer(self.function(self.inner(x))).sum(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("index", range(len(FUNCTIONS)))
def test_finite_at_any_input(dtype, index):
    x = torch.randn(4, 6, 6, dtype=dtype)
    x[0], x[1, :, ::2], x[2] = 0, 0, x[2] * 1e-4
    attribution = lrp_fx.convert(Around(FUNCTIONS[index]).to(dtype), x).explain(x)
    assert attribution.relevance["x"].isfinite().all()
    assert (attribution.relevance["x"][0] == 0).all()


@pytest.mark.parametrize("rule", ["proportional", "even"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_windows_without_a_positive_value_are_finite(dtype, rule):
    x = torch.randn(4, 6, 6, dtype=dtype)
    x[0], x[1, :, ::2], x[2] = 0, 0, -x[2].abs()
    model = nn.Sequential(nn.MaxPool1d(3, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(1), nn.Linear(6, 3, bias=False))
    attribution = lrp_fx.convert(model.to(dtype), x, rules={"base": "attnlrp", "rules": {"selection": rule}}).explain(x)
    found, value = attribution.relevance["input"], attribution.target
    assert found.isfinite().all()
    assert not found[0].any() and not found[2].any()
    torch.testing.assert_close(found.float().sum((1, 2)), value.float(), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("dtype", "correlation"), [(torch.bfloat16, 0.99), (torch.float16, 0.999)])
def test_half_precision_llama_correlates_with_double(dtype, correlation):
    torch.manual_seed(1)
    config = tf.LlamaConfig(**{**GQA, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128})
    model = tf.LlamaForCausalLM(config).eval()
    tokens = ids(4, 32)
    low = lrp_fx.convert(model.to(dtype), input_ids=tokens).explain(input_ids=tokens, target=5).relevance["input_ids"]
    model = model.to(torch.float64)  # the same rounded weights
    high = lrp_fx.convert(model, input_ids=tokens).explain(input_ids=tokens, target=5).relevance["input_ids"]
    assert low.isfinite().all()
    assert torch.corrcoef(torch.stack([low.double().flatten(), high.flatten()]))[0, 1] > correlation


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_llama_is_finite_at_zero(dtype):
    model, _ = build("llama2", dtype)
    embeddings = torch.zeros(1, 5, 32, dtype=dtype)
    relevance = (
        lrp_fx.convert(model, inputs_embeds=embeddings).explain(inputs_embeds=embeddings).relevance["inputs_embeds"]
    )
    assert (relevance == 0).all()


def test_overflow_is_a_named_error():
    class Overflow(nn.Module):
        def forward(self, x):
            return torch.exp(x * 1000).sum(-1)

    with pytest.raises(NumericalError, match=r"not finite.*exp|exp.*not finite"):
        lrp_fx.convert(Overflow()).explain(torch.full((2, 3), 100.0))


def test_nan_input_is_a_named_error():
    with pytest.raises(InputError, match="'input' contains NaN"):
        lrp_fx.convert(nn.Linear(3, 2)).explain(torch.tensor([[1.0, float("nan"), 0.0]]))
