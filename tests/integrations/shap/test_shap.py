"""shap 0.51: results as explanations, and its plots of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shap
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.results import Tokens


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def closes(explanation, target):
    sums = [np.asarray(row, dtype=float).sum() for row in explanation.values]
    assert np.allclose(np.asarray(sums) + explanation.base_values, target.numpy(), atol=1e-5)


def test_a_table_with_names():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    x = torch.randn(8, 4)
    result = (
        lrp_fx.convert(model).explain(x, target=1).knowing(features={"input": ["age", "height", "weight", "pulse"]})
    )
    explanation = result.to_shap()
    assert explanation.feature_names == ["age", "height", "weight", "pulse"]
    assert np.array_equal(explanation.data, x.numpy()) and np.allclose(explanation.values, result.relevance["input"])
    closes(explanation, result.target)
    shap.plots.beeswarm(explanation, show=False)
    shap.plots.waterfall(explanation[0], show=False)
    assert "height" in {label.get_text().rpartition("= ")[2] for label in plt.gcf().axes[0].get_yticklabels()}
    shap.plots.bar(explanation, show=False)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        weight = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        return self.head((torch.tanh(self.table(input_ids)) * weight).sum(1))


def test_texts_of_different_lengths():
    ids, mask = torch.tensor([[1, 5, 7, 2], [1, 9, 2, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    result = lrp_fx.convert(Words()).explain(input_ids=ids, attention_mask=mask, target=0)
    full, none = (False,) * 4, (False, False, False, True)
    tokens = (
        Tokens(("[CLS]", "good", "ness", "[SEP]"), full, full, ((0, 0), (0, 4), (4, 8), (8, 8)), None, "goodness"),
        Tokens(("[CLS]", "bad", "[SEP]", "[PAD]"), full, none, ((0, 0), (1, 4), (5, 5), (0, 0)), None, " bad "),
    )
    explanation = result.knowing(tokens={"input_ids": tokens}).to_shap()
    assert [list(row) for row in explanation.data] == [["[CLS]", "good", "ness", "[SEP]"], ["[CLS] ", "bad ", "[SEP]"]]
    closes(explanation, result.target)
    page = shap.plots.text(explanation[0], display=False)
    assert "ness" in page and "base value" in page


def test_several_targets_are_outputs():
    ids = torch.tensor([[1, 5, 7], [1, 9, 2]])
    several = lrp_fx.convert(Words()).explain(input_ids=ids, attention_mask=torch.ones_like(ids), targets=[0, 2])
    explanation = several.to_shap()
    assert explanation.values.shape == (2, 3, 2) and explanation.output_names == ["0", "2"]
    assert np.allclose(explanation.values.sum(1) + explanation.base_values, several.target.T.numpy(), atol=1e-5)


def test_pictures_have_their_channels_last():
    x = torch.rand(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    result = lrp_fx.convert(model).explain(x)
    explanation = result.to_shap()
    assert explanation.values.shape == (2, 8, 8, 3) and np.array_equal(explanation.data, x.movedim(1, 3).numpy())
    closes(explanation, result.target)
    shap.image_plot(explanation, show=False)
    assert plt.gcf().axes


def test_what_is_not_there():
    result = lrp_fx.convert(nn.Linear(4, 3)).explain(torch.randn(2, 4), keep_inputs=False)
    assert result.to_shap().data is None
    with pytest.raises(InputError, match="no input is called 'y'"):
        result.to_shap(input="y")
