"""Lowered graphs explain their own example as explain() does, and no file of one that does not is written."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import LoweringError


class Transposed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.head = norm, nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)).mean(1)


NORMS = {
    "batch": lambda: nn.BatchNorm1d(8),
    "instance": lambda: nn.InstanceNorm1d(8, affine=True),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm(5),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_over_transposed_sequences(norm, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(Transposed(NORMS[norm]()).double().eval(), x)
    wanted = xmodel.explain(x, target=1).relevance["x"]
    xmodel.save(tmp_path / "x.pt2", x, target=1)
    for lowered in (
        xmodel.lower(x, target=1),
        xmodel.lower(x, target=1, dynamic=False),
        lrp_fx.load(tmp_path / "x.pt2"),
    ):
        assert torch.allclose(lowered(x, target=1).relevance["x"], wanted, rtol=0, atol=1e-10)


class Where(nn.Module):
    def forward(self, x, mask):
        return torch.where(mask, x * 2, x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_masks_of_bytes(dtype):
    x, mask = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    xmodel = lrp_fx.convert(Where(), x, mask)
    found, wanted = xmodel.lower(x, mask, target=0)(x, mask, target=2), xmodel.explain(x, mask, target=2)
    assert torch.equal(found.relevance["x"], wanted.relevance["x"])
    assert torch.equal(wanted.relevance["x"][:, 2], Where()(x, mask)[:, 2])


class LossFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return y.sum(), None, y


def test_a_callable_on_outputs_that_begin_with_a_loss():
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(LossFirst().double(), x)
    for target in (lambda out: out[2].sum().reshape(1), lambda out: out[2][:, 1]):
        found, wanted = xmodel.lower(x, target=target)(x, target=target), xmodel.explain(x, target=target)
        assert torch.allclose(found.relevance["x"], wanted.relevance["x"], atol=1e-12)


def test_a_graph_that_explains_something_else_is_not_written(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    lowered = lrp_fx.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval(), x).lower(x, target=1)
    nodes = list(lowered.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default))
    for node in nodes:
        node.target = torch.ops.aten.sigmoid.default
    lowered.graph_module.recompile()
    for write in (lowered.save, lowered.package):
        with pytest.raises(LoweringError, match="the target by"):
            write(tmp_path / "x.pt2")
    nodes[0].target = torch.ops.aten.inverse.default
    lowered.graph_module.recompile()
    with pytest.raises(LoweringError, match="does not run on its own example"):
        lowered.save(tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())
