"""The graph of an exported program, with the model's tensors as attributes: as PyTorch makes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrp_fx.capture.unlift import unlifted


class Holding(nn.Module):
    """A model with every kind of tensor: parameters, buffers, constants, under a name that is a keyword, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)
        setattr(self, "in", nn.Linear(4, 3))
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.plain, self.learned = torch.rand(4), torch.rand(4, requires_grad=True)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        self.count += 1
        x.mul_(2)
        with torch.no_grad():
            mean = x.mean()
        y = self.layer(x - mean) * self.scale + self.plain * self.learned + self.count
        return {"y": getattr(self, "in")(y if shift is None else y + shift), "x": x}


@pytest.mark.filterwarnings("ignore:A model attribute")
def test_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    model = Holding().eval()
    x, shift = torch.randn(2, 4), torch.randn(4)
    program = torch.export.export(model, (x.clone(),), {"shift": shift})
    made = unlifted(program)
    sets = [n for n in made.graph.nodes if n.op == "get_attr" and str(n.target).startswith("submod")]
    assert sets and isinstance(made.get_submodule(str(sets[0].target)), torch.fx.GraphModule)
    for spec in program.graph_signature.input_specs:  # a keyword is no attribute that PyTorch can write
        assert spec.target is None or type(spec.target) is str
    model.count.zero_()
    mine, theirs = x.clone(), x.clone()
    got = made(mine, shift=shift)
    model.count.zero_()
    expected = model(theirs, shift=shift)
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    assert torch.equal(mine, theirs) and not torch.equal(mine, x)
    assert float(model.count) == 1
    named = dict(made.named_parameters())
    assert named["layer.weight"] is model.layer.weight and named["in.bias"] is getattr(model, "in").bias
    assert dict(made.named_buffers())["scale"] is model.scale
    assert not any(b.requires_grad for b in made.buffers())
