"""scikit-learn: tables of features, explained in a pipeline."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from lrp_fx.errors import InputError
from lrp_fx.integrations.sklearn import TabularExplainer

NAMES = ["age", "height", "weight"]


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    X = pd.DataFrame(generator.normal(size=(60, 3)), columns=NAMES)
    return X, np.array(["low", "middle", "high"])[np.digitize(X["height"], [-0.5, 0.5])]


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_networks_of_scikit_learn(table, activation):
    X, y = table
    classifier = MLPClassifier((8, 6), activation=activation, max_iter=30, random_state=0).fit(X.to_numpy(), y)
    explainer = TabularExplainer(classifier, feature_names=NAMES, rules="gradient").fit(X)
    logits = explainer.xmodel_(torch.tensor(X.to_numpy()))
    shares = torch.softmax(logits, 1).detach().numpy()
    assert np.allclose(shares, classifier.predict_proba(X.to_numpy()))
    result = explainer.explain(X[:4])
    assert result.context.features == {"input": tuple(NAMES)} and result.context.labels == ("high", "low", "middle")
    assert np.allclose(explainer.transform(X[:4]), result.relevance["input"])


def test_a_pipeline_ranks_the_feature_that_matters(table):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=300, random_state=0)).fit(X, y)
    explainer = TabularExplainer(pipeline).fit(X)
    relevance = explainer.transform(X)
    assert list(explainer.get_feature_names_out()) == NAMES
    assert np.abs(relevance).mean(0).argmax() == 1
    frame = explainer.explain(X[:1]).to_dataframe()
    assert set(NAMES) <= set(frame.astype(str).to_numpy().flatten())


def test_steps_that_make_other_features():
    X = pd.DataFrame({"colour": ["red", "green", "red", "blue"]})
    net = MLPRegressor(hidden_layer_sizes=(4,), max_iter=10, random_state=0)
    pipeline = make_pipeline(OneHotEncoder(), net).fit(X, [1.0, 2.0, 1.5, 0.0])
    explainer = TabularExplainer(pipeline).fit(X)
    assert list(explainer.get_feature_names_out()) == ["colour_blue", "colour_green", "colour_red"]
    assert explainer.transform(X).shape == (4, 3)


def test_modules_and_nets_that_hold_one(table):
    X, _ = table
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    class Net:
        module_ = module
        classes_ = np.array([0, 1, 2])

    plain = TabularExplainer(module, target=1).fit(X)
    assert np.array_equal(TabularExplainer(Net(), target=1).fit(X).transform(X), plain.transform(X))
    assert TabularExplainer(module).get_params()["rules"] == "default"


def test_errors(table):
    X, _ = table
    with pytest.raises(InputError, match="LinearRegression has no network"):
        TabularExplainer(LinearRegression()).fit(X)
    module = nn.Linear(3, 2)
    with pytest.raises(InputError, match="2 names for 3 features"):
        TabularExplainer(module, feature_names=["a", "b"]).fit(X)
    with pytest.raises(NotFittedError):
        TabularExplainer(module).transform(X)
