"""Relevance has no derivative: a second derivative is right or an error, never another number."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import DerivativeError, InputError

LAYERS = {"gelu": nn.GELU(), "norm": nn.LayerNorm(6, dtype=torch.float64), "softmax": nn.Softmax(-1)}


def converted(middle, rules):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), middle, nn.Linear(6, 2, bias=False)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    return lrp_fx.convert(model, x, rules=rules), x


def relevance(xmodel, x):
    (gradient,) = torch.autograd.grad(xmodel(x)[:, 1].sum(), x, create_graph=True)
    return x * gradient


@pytest.mark.parametrize("rules", ["default", "attnlrp"])
@pytest.mark.parametrize("middle", LAYERS)
def test_the_derivative_of_relevance_is_an_error(middle, rules):
    xmodel, x = converted(LAYERS[middle], rules)
    x.requires_grad_()
    total = relevance(xmodel, x)[:, 0].sum()
    with pytest.raises(DerivativeError, match="finite differences"):
        torch.autograd.grad(total, x, retain_graph=True)
    with pytest.raises(DerivativeError):
        total.backward()


@pytest.mark.parametrize("middle", LAYERS)
def test_gradients_have_derivatives(middle):
    xmodel, x = converted(LAYERS[middle], "gradient")
    torch.autograd.gradgradcheck(lambda z: xmodel(z)[:, 1], x.requires_grad_())


def test_relevance_with_and_without_a_graph_is_the_same():
    xmodel, x = converted(LAYERS["gelu"], "default")
    explained = xmodel.explain(x, target=1).relevance["input"]
    x.requires_grad_()
    torch.testing.assert_close(relevance(xmodel, x).detach(), explained, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(xmodel(x)[:, 1].sum(), x)
    torch.testing.assert_close(x.detach() * gradient, explained, rtol=0, atol=0)
    by_transform = torch.func.grad(lambda z: xmodel(z)[:, 1].sum())(x.detach())
    torch.testing.assert_close(x.detach() * by_transform, explained, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "unusual, remedy",
    [
        (torch.eye(4).to_sparse(), "to_dense"),
        (torch.eye(4).to_sparse_csr(), "to_dense"),
        (torch.randn(2, 4).to_mkldnn(), "to_dense"),
        (torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged), "pad it"),
        (torch.quantize_per_tensor(torch.randn(2, 4), 0.1, 0, torch.qint8), "dequantize"),
    ],
    ids=["coo", "csr", "mkldnn", "nested", "quantized"],
)
def test_tensors_of_other_layouts_are_refused_by_name(unusual, remedy):
    xmodel = lrp_fx.convert(nn.Linear(4, 3))
    with pytest.raises(InputError, match=f"input 'input' is a .*{remedy}"):
        xmodel.explain(unusual, target=0)
    xmodel.explain(torch.randn(2, 4), target=0)
    with pytest.raises(InputError, match=remedy):
        xmodel.explain(unusual, target=0)
