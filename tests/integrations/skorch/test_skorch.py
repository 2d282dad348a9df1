"""skorch: nets as scikit-learn has them, alone and in a pipeline, with the adapter for tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

import lrp_fx
from lrp_fx.integrations.sklearn import TabularExplainer

NAMES = ["age", "height", "weight"]


class Perceptron(nn.Module):
    def __init__(self, width=12, outputs=3, nonlinearity=nn.ReLU):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nonlinearity(), nn.Dropout(0.2), nn.Linear(width, outputs))

    def forward(self, X):
        return self.layers(X)


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    X = pd.DataFrame(generator.normal(size=(80, 3)).astype("float32"), columns=NAMES)
    return X, np.array(["low", "middle", "high"])[np.digitize(X["height"], [-0.5, 0.5])]


def net(kind, **options):
    torch.manual_seed(0)
    return kind(Perceptron, max_epochs=20, lr=0.1, verbose=0, iterator_train__shuffle=True, **options)


def test_a_classifier_in_a_pipeline(table):
    X, y = table
    codes = np.unique(y, return_inverse=True)[1]
    classifier = net(NeuralNetClassifier, criterion=nn.CrossEntropyLoss)
    pipeline = make_pipeline(StandardScaler().set_output(transform="default"), classifier).fit(X, codes)
    explainer = TabularExplainer(pipeline, rules="attnlrp").fit(X)
    relevance = explainer.transform(X)
    assert relevance.shape == (80, 3) and np.abs(relevance).mean(0).argmax() == 1
    assert list(explainer.get_feature_names_out()) == NAMES
    # it explains the answers of the net: every row's largest logit is its prediction
    result = explainer.explain(X[:8])
    rows = torch.as_tensor(pipeline[0].transform(X[:8])).float()
    expected = lrp_fx.convert(pipeline[1].module_, rules="attnlrp").explain(rows)
    assert np.allclose(result.relevance["X"], expected.relevance["X"]) and result.ledger.balance < 1e-5
    assert np.array_equal(pipeline.predict(X[:8]), expected.output.argmax(1))
    assert clone(explainer).get_params()["rules"] == "attnlrp"


def test_other_nets(table):
    X, _ = table
    rows = X.to_numpy()
    regressor = net(NeuralNetRegressor, module__outputs=1).fit(rows, rows[:, 1:2])
    result = TabularExplainer(regressor, feature_names=NAMES).fit(rows).explain(rows[:4])
    assert np.allclose(result.target, regressor.predict(rows[:4])[:, 0], atol=1e-6)
    binary = net(NeuralNetBinaryClassifier, module__outputs=1).fit(rows, (rows[:, 1] > 0).astype("float32"))
    explained = TabularExplainer(binary).fit(X).explain(X[:4])
    assert np.array_equal(explained.target.numpy() > 0, binary.predict(rows[:4]) == 1)
