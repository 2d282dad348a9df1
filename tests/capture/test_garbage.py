"""While a model is converted, Python collects no garbage; afterwards it does what it did before."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import lrp_fx
from lrp_fx.capture.garbage import uncollected


def test_no_collections_during_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        seen.append(gc.isenabled())
        return x @ layer.weight.T

    monkeypatch.setattr(nn.Linear, "forward", forward)
    lrp_fx.convert(nn.Sequential(nn.Linear(3, 2)).eval(), torch.randn(2, 3))
    assert seen and not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize("before", [True, False])
def test_the_switch_is_as_before(before: bool) -> None:
    (gc.enable if before else gc.disable)()
    try:
        with uncollected(), uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is before
        with pytest.raises(ValueError, match="of a pass"), uncollected():
            raise ValueError("of a pass")
        assert gc.isenabled() is before
    finally:
        gc.enable()
