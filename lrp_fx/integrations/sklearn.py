"""Tables of features: an explainer with scikit-learn's methods, also for networks in its pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError
from lrp_fx.explain import Target
from lrp_fx.extras import require
from lrp_fx.results import Attribution

base: Any = require("sklearn.base", "sklearn")

_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class TabularExplainer(base.TransformerMixin, base.BaseEstimator):  # type: ignore[misc]
    """Relevance of every feature, as a transformer of scikit-learn.

    ``TabularExplainer(estimator).fit(X).transform(X)`` is an array (rows, features). :meth:`explain` returns the whole
    result: ledger, notes and plots, with the names of features and classes.

    The estimator is a fitted ``MLPClassifier`` or ``MLPRegressor``, a net with its module in ``module_`` (skorch), an
    ``nn.Module``, or a ``Pipeline`` that ends in one of these. The other steps of a pipeline prepare the rows; the
    features are those of the last step's input. The logits of classes are explained.
    """

    def __init__(
        self,
        estimator: Any,
        rules: RuleSource = "default",
        feature_names: Sequence[str] | None = None,
        target: Target = None,
    ) -> None:
        """Store the arguments as attributes, as scikit-learn requires.

        Args:
            estimator: the fitted estimator.
            rules: the rule set.
            feature_names: names of the features; None for the names in the data frame or the pipeline.
            target: index of a class; None for each row's own answer.
        """
        self.estimator = estimator
        self.rules = rules
        self.feature_names = feature_names
        self.target = target

    def fit(self, X: Any, y: Any = None) -> Self:
        """Convert the estimator's network and store the names of features.

        Raises:
            InputError: for an estimator without a network, or if there are more or fewer names than features.
        """
        steps, last = _split(self.estimator)
        prepared = X if steps is None else steps.transform(X)
        self.steps_, self.xmodel_ = steps, convert(_network(last), rules=self.rules)
        self.classes_ = getattr(last, "classes_", None)
        names = _names(X, steps) if self.feature_names is None else [str(name) for name in self.feature_names]
        width = np.shape(prepared)[1]
        self.feature_names_ = names or [f"feature {i}" for i in range(width)]
        if len(self.feature_names_) != width:
            raise InputError(f"{len(self.feature_names_)} names for {width} features")
        return self

    def explain(self, X: Any) -> Attribution:
        """Explain some rows.

        Raises:
            sklearn.exceptions.NotFittedError: before :meth:`fit`.
        """
        validation: Any = require("sklearn.utils.validation", "sklearn")
        validation.check_is_fitted(self, "xmodel_")
        prepared = X if self.steps_ is None else self.steps_.transform(X)
        prepared = prepared.toarray() if hasattr(prepared, "toarray") else np.asarray(prepared)
        parameter = next(self.xmodel_.parameters(), torch.empty(0))
        result = self.xmodel_.explain(torch.as_tensor(prepared).to(parameter), target=self.target)
        (name,) = list(result.relevance)[:1]
        names: dict[str, Any] = {"features": {name: self.feature_names_}}
        if self.classes_ is not None and len(self.classes_) > 2:
            names["labels"] = [str(c) for c in self.classes_]
        return result.knowing(**names)

    def transform(self, X: Any) -> np.ndarray:
        """(rows, features) relevance."""
        return next(iter(self.explain(X).numpy().values()))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of :meth:`transform`."""
        return np.asarray(self.feature_names_, dtype=object)


def _split(estimator: Any) -> tuple[Any, Any]:
    """(steps before the last, last step) of a pipeline; (None, estimator) for anything else."""
    if not hasattr(estimator, "steps"):
        return None, estimator
    return (estimator[:-1] if len(estimator.steps) > 1 else None), estimator.steps[-1][1]


def _names(X: Any, steps: Any) -> list[str]:
    if steps is not None and hasattr(steps, "get_feature_names_out"):
        columns = getattr(X, "columns", None)
        return [str(n) for n in steps.get_feature_names_out(None if columns is None else list(columns))]
    return [str(column) for column in getattr(X, "columns", [])]


def _network(estimator: Any) -> nn.Module:
    """The network of an estimator.

    Raises:
        InputError: for an estimator without a network.
    """
    if isinstance(estimator, nn.Module):
        return estimator
    module = getattr(estimator, "module_", None)
    if isinstance(module, nn.Module):
        return module
    if hasattr(estimator, "coefs_") and getattr(estimator, "activation", None) in _ACTIVATIONS:
        return _perceptron(estimator)
    raise InputError(
        f"{type(estimator).__name__} has no network to explain: give an nn.Module, a net with its module in module_ "
        "(skorch), or a fitted MLPClassifier or MLPRegressor"
    )


def _perceptron(estimator: Any) -> nn.Module:
    """scikit-learn's own network, up to its logits."""
    layers: list[nn.Module] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        layer = nn.Linear(weight.shape[0], weight.shape[1], dtype=torch.as_tensor(weight).dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(weight.T))
            layer.bias.copy_(torch.as_tensor(bias))
        layers += [layer, _ACTIVATIONS[estimator.activation]()]
    return nn.Sequential(*layers[:-1]).eval()
