"""timm's own test idiom (test_model_forward of its tests/test_models.py), with one line more, on five classes."""

import pytest
import timm
import torch
from timm import create_model, list_models

from lrp_fx.testing import assert_explainable, explain_test

SIZE = 64
MODELS = ["test_convnext", "test_efficientnet", "test_mambaout", "test_resnet", "test_vit"]  # timm's own, for tests


def options(name):
    return {"num_classes": 10, **({"img_size": SIZE} if "vit" in name else {})}


@pytest.mark.parametrize("model_name", list_models(MODELS))
@pytest.mark.parametrize("batch_size", [1])
def test_model_forward(model_name, batch_size):
    """Run a single forward pass with each model"""
    model = create_model(model_name, pretrained=False, **options(model_name))
    model.eval()

    inputs = torch.randn((batch_size, 3, SIZE, SIZE))
    outputs = model(inputs)

    assert outputs.shape[0] == batch_size
    assert not torch.isnan(outputs).any(), "Output included NaNs"
    assert_explainable(model, inputs)


def small(name):
    return timm.create_model(name, **options(name))


test_explain = explain_test(["test_resnet"], small, lambda model: torch.randn(1, 3, SIZE, SIZE), rules="attnlrp")
