"""Models that a library gives names of its own: of parameters, and of modules."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import LatentError


class Wrapped(nn.Module):
    """Lists its tensors by a clean name, and finds hooks by aliases that are no modules of that path."""

    ALIASES = ("hook_middle",)

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"first": nn.Linear(4, 6), "hook": nn.Identity(), "second": nn.Linear(6, 3)})
        self.register_buffer("offset", torch.linspace(0, 1, 6))

    def forward(self, x):
        return self.inner["second"](self.inner["hook"](self.inner["first"](x) + self.offset).relu())

    def named_parameters(self, *args, **kwargs):
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.replace("inner.", "original."), parameter

    def named_buffers(self, *args, **kwargs):
        for name, buffer in super().named_buffers(*args, **kwargs):
            yield f"original.{name}", buffer

    def __getattr__(self, name):
        if name in self.ALIASES:
            return self.inner["hook"]
        return super().__getattr__(name)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Wrapped().double().eval()


@pytest.mark.parametrize("capture", ["export", "trace"])
def test_tensors_and_modules_under_other_names(model, capture):
    xmodel = lrp_fx.convert(model, capture=capture, rules="attnlrp")
    x = torch.randn(2, 4, dtype=torch.float64)
    found = xmodel.explain(x, target=1, at=["hook_middle", "inner.hook"])
    torch.testing.assert_close(found.output, model(x))
    assert found.ledger.balance < 1e-9 and found.latents["hook_middle"].any()
    assert torch.equal(found.latents["hook_middle"], found.latents["inner.hook"])
    part = xmodel.explain(x, target=1, condition={"hook_middle": [0, 2]})
    same = xmodel.explain(x, target=1, condition={"inner.hook": [0, 2]})
    assert torch.equal(part.relevance["x"], same.relevance["x"])
    with pytest.raises(LatentError, match="hook_last"):
        xmodel.explain(x, at="hook_last")
