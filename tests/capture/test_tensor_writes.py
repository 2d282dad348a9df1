"""A capture runs the model: what the model then writes into its weights is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lrp_fx
from lrp_fx.capture.conventions import preserved

X = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)


def with_torch(weight: nn.Parameter) -> None:
    weight.div_(4)


def with_data(weight: nn.Parameter) -> None:
    weight.data.div_(4)


def by_index(weight: nn.Parameter) -> None:
    weight[:] = weight / 4


def by_operator(weight: nn.Parameter) -> None:
    weight /= 4


def of_a_part(weight: nn.Parameter) -> None:
    for row in weight.view(-1).split(4):
        torch.mul(row, 0.25, out=row)


def of_a_list(weight: nn.Parameter) -> None:
    torch._foreach_mul_([weight], 0.25)


def by_a_kernel(weight: nn.Parameter) -> None:
    torch.ops.aten.mul_.Tensor(weight, 0.25)


def with_other_memory(weight: nn.Parameter) -> None:
    weight.data = weight.data / 4


WRITES = [with_torch, with_data, by_index, by_operator, of_a_part, of_a_list, by_a_kernel, with_other_memory]


class Scaled(nn.Module):
    """Scales its weight before its first run, and remembers that."""

    def __init__(self, write: Callable[[nn.Parameter], None], branches: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.write, self.branches, self.is_scaled = write, branches, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_scaled:
            with torch.no_grad():
                self.write(self.first.weight)
            self.is_scaled = True
        y = torch.tanh(self.first(x))
        if self.branches and float(y.sum()) > 1e6:  # export cannot follow it: a run is recorded
            y = y * 2
        return self.second(y)


def of(write: Callable[[nn.Parameter], None], branches: bool = False) -> Scaled:
    return Scaled(write, branches).double().eval()


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_a_run_writes_into_weights_is_undone(write: Callable[[nn.Parameter], None]) -> None:
    model = of(write)
    weight, memory = model.first.weight.detach().clone(), model.first.weight.data_ptr()
    with preserved(model):
        model(X)
        assert torch.equal(model.first.weight, weight / 4) and model.is_scaled
    assert torch.equal(model.first.weight, weight) and not model.is_scaled
    assert model.first.weight.data_ptr() == memory


@pytest.mark.parametrize("write", [with_torch, with_data])
@pytest.mark.parametrize("branches", [False, True], ids=["exported", "recorded"])
def test_a_model_that_scales_its_weights_once(write: Callable[[nn.Parameter], None], branches: bool) -> None:
    model = of(write, branches)
    expected = copy.deepcopy(model)(X)
    weight = model.first.weight.detach().clone()
    xmodel = lrp_fx.convert(model, rules="gradient")
    before = xmodel.explain(X, target=1).relevance["x"]
    assert torch.equal(model.first.weight, weight) and not model.is_scaled  # as it was
    torch.testing.assert_close(xmodel(X), expected)
    torch.testing.assert_close(model(X), expected)  # scales its weights now
    torch.testing.assert_close(xmodel(X), expected)  # and the graph does no more
    torch.testing.assert_close(xmodel.explain(X, target=1).relevance["x"], before)
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(before, leaf.detach() * gradient)
    assert torch.equal(model.first.weight, weight / 4)
