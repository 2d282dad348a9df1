"""quantus 0.6: metrics of every family on our explanation function."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.integrations import quantus as ours
from lrp_fx.integrations.quantus import explain_func

#: quantus imports zennit where that is installed, and zennit imports torchvision, which has no build for the CPU torch
HIDDEN = {} if importlib.util.find_spec("torchvision") else {"zennit": None}

kept = {name: sys.modules[name] for name in HIDDEN if name in sys.modules}
sys.modules.update(HIDDEN)
import quantus

for name in HIDDEN:
    del sys.modules[name]
sys.modules.update(kept)


@pytest.fixture
def task():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).eval()
    return model, np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32), np.array([0, 2, 1])


def test_the_function_is_explain(task):
    model, x, y = task
    expected = (
        lrp_fx.convert(model, rules="attnlrp").explain(torch.tensor(x), target=torch.tensor(y)).relevance["input"]
    )
    assert np.array_equal(explain_func("attnlrp")(model=model, inputs=x, targets=y), expected.numpy())
    pictures = np.repeat(x, 3, 1)
    wide = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(64, 3))
    summed, kept = (
        explain_func(channels=c)(wide, pictures.astype(np.float64), y, device="cpu") for c in ("sum", "keep")
    )
    assert summed.shape == (3, 1, 8, 8) and np.allclose(summed, kept.sum(1, keepdims=True), atol=1e-6)


def test_a_model_is_converted_once_and_changed_weights_count(task, monkeypatch):
    model, x, y = task
    made = []
    monkeypatch.setattr(ours, "convert", lambda *a, **k: made.append(a) or lrp_fx.convert(*a, **k))
    explain = explain_func("gradient")
    first = explain(model, x, y)
    with torch.no_grad():
        model[-1].weight.mul_(2)
    assert np.allclose(explain(model, x, y), 2 * first, atol=1e-7) and len(made) == 1
    with pytest.raises(InputError, match="knows no xai_lib"):
        explain(model, x, y, xai_lib="captum")
    with pytest.raises(ValueError, match="channels"):
        explain_func(channels="mean")


@pytest.mark.parametrize(
    "metric",
    [
        quantus.PixelFlipping(features_in_step=16, disable_warnings=True),
        quantus.Completeness(disable_warnings=True),
        quantus.MaxSensitivity(nr_samples=2, disable_warnings=True),
        quantus.Sparseness(disable_warnings=True),
        quantus.MPRT(disable_warnings=True),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_metrics_run(metric, task):
    model, x, y = task
    scores = metric(model=model, x_batch=x, y_batch=y, explain_func=explain_func(), device="cpu")
    values = list(scores.values()) if isinstance(scores, dict) else scores
    assert np.isfinite(np.asarray(values, dtype=float)).all()


def test_completeness_holds_where_nothing_absorbs(task):
    """Without biases, under the epsilon rule, the sum of relevance is the logit."""
    model, x, y = task
    for layer in model:
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    relevance = explain_func("cp_lrp")(model, x, y)
    logits = model(torch.tensor(x)).detach().numpy()[np.arange(3), y]
    assert np.allclose(relevance.reshape(3, -1).sum(1), logits, atol=1e-5)
