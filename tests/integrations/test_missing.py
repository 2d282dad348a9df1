"""Without a package, its adapter says which extra brings it."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx import extras
from lrp_fx.errors import MissingExtraError


@pytest.mark.parametrize("package", ["shap"])
def test_a_missing_package_is_named(package, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    result = lrp_fx.convert(nn.Linear(3, 2)).explain(torch.randn(1, 3))
    with pytest.raises(MissingExtraError, match=r"pip install 'lrp_fx\[shap\]'"):
        result.to_shap()
