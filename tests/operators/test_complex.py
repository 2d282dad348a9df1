"""Complex numbers inside of a model: conjugates are views that PyTorch resolves late."""

import pytest
import torch
from torch import nn

import lrp_fx


class Power(nn.Module):
    """A power spectrum, and back: a product of a complex signal with its conjugate."""

    def __init__(self, conjugate):
        super().__init__()
        self.first, self.conjugate = nn.Linear(4, 4, bias=False), conjugate

    def forward(self, x):
        spectrum = torch.fft.rfft(self.first(x))
        return torch.fft.irfft(spectrum * self.conjugate(spectrum))


class ComplexWeights(nn.Module):
    """A layer of complex weights: contributions have no signs that a rule could favour."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.complex128))
        self.kernel = nn.Parameter(torch.randn(2, 1, 2, dtype=torch.complex128))
        self.head = nn.Linear(12, 3).double()

    def forward(self, x):
        z = (x.to(self.weight.dtype) @ self.weight)[:, None]
        z = torch.nn.functional.conv1d(z, self.kernel)
        return self.head(torch.view_as_real(z).flatten(1).tanh())


@pytest.mark.parametrize("rules", ["default", "epsilon_plus", "epsilon_gamma_box", "attnlrp"])
def test_layers_of_complex_weights(rules):
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64)
    attribution = lrp_fx.convert(ComplexWeights(), x).explain(x, target=1, rules=rules, check="always")
    assert attribution.ledger.balance < 1e-9 and bool(attribution.relevance["x"].all())


@pytest.mark.parametrize("conjugate", [torch.conj, torch.conj_physical, lambda z: torch.complex(z.real, -z.imag)])
def test_conjugates(conjugate):
    torch.manual_seed(0)
    model, x = Power(conjugate).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    x.detach_()
    xmodel = lrp_fx.convert(model, x, rules="gradient")
    explained = xmodel.explain(x, target=0, check="always").relevance["x"]
    torch.testing.assert_close(explained, x * gradient, rtol=1e-9, atol=1e-12)
    assert xmodel.verify(x, target=0).passed
    conserving = xmodel.explain(x, target=0, rules="attnlrp", check="always")
    assert conserving.ledger.balance < 1e-9
    # the product is homogeneous of degree 2, so that a conserving rule halves its gradient
    torch.testing.assert_close(conserving.relevance["x"], x * gradient / 2, rtol=1e-9, atol=1e-12)


def low_modes(spectrum):
    """The slice of a spectral convolution, as in Fourier neural operators."""
    kept = torch.zeros_like(spectrum)
    kept[..., :2] = spectrum[..., :2] * (1 + 2j)
    return kept


def one_mode(spectrum):
    kept = torch.zeros_like(spectrum)
    kept[..., 1] = spectrum[..., 1] * 1j
    kept[0] = spectrum[-1].conj()
    return kept


@pytest.mark.parametrize("write", [low_modes, one_mode])
def test_writes_into_complex_tensors(write):
    torch.manual_seed(0)
    model, x = Power(write).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    x.detach_()
    xmodel = lrp_fx.convert(model, x, rules="gradient")
    torch.testing.assert_close(xmodel(x), model(x))
    explained = xmodel.explain(x, target=0, check="always").relevance["x"]
    torch.testing.assert_close(explained, x * gradient, rtol=1e-9, atol=1e-12)
    assert xmodel.explain(x, target=0, rules="attnlrp", check="always").ledger.balance < 1e-9
