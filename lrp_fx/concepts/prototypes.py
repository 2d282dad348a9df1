"""Prototypes of a class by the concepts that it uses (PCX; Dreyer et al. 2024, arXiv:2311.16681).

The relevance of the neurons of one layer says which concepts an answer rests on. A mixture of Gaussians over the rows
of a class has a component for each way of reaching that answer; the row nearest to its mean is the prototype, and rows
of low likelihood deviate from all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrp_fx.concepts.explained_run import ExplainedRun
from lrp_fx.concepts.run_gallery import Group, Shown, write_gallery
from lrp_fx.errors import InputError
from lrp_fx.extras import require

_FULL = 3  #: rows for each neuron that a full covariance needs
_REGULAR = 1e-5  #: added to variances


@dataclass(frozen=True)
class ClassPrototypes:
    """The mixture of one class.

    Attributes:
        name: name of the class.
        rows: (N,) numbers of the rows in the data set.
        concepts: (N, F) relevance of each neuron, scaled to a total magnitude of 1.
        mixture: scikit-learn's mixture.
        members: (N,) most likely component of each row.
        likelihood: (N,) log-likelihood of each row.
    """

    name: str
    rows: np.ndarray
    concepts: np.ndarray = field(repr=False)
    mixture: Any = field(repr=False)
    members: np.ndarray = field(repr=False)
    likelihood: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.mixture.weights_)

    @property
    def coverage(self) -> np.ndarray:
        """(K,) share of the rows of each component."""
        return np.bincount(self.members, minlength=len(self)) / len(self.rows)

    def nearest(self, component: int, count: int = 1) -> np.ndarray:
        """Indices of the rows nearest to a component's mean: the first is the prototype."""
        distance = np.linalg.norm(self.concepts - self.mixture.means_[component], axis=1)
        return np.argsort(distance, kind="stable")[:count]

    def deviating(self, count: int = 5) -> np.ndarray:
        """Indices of the rows with the lowest likelihood, the lowest first."""
        return np.argsort(self.likelihood, kind="stable")[:count]

    def strongest(self, component: int, count: int = 5) -> list[tuple[int, float]]:
        """(neuron, mean relevance) of the largest magnitudes of a component."""
        mean = self.mixture.means_[component]
        return [(int(i), float(mean[i])) for i in np.argsort(-np.abs(mean), kind="stable")[:count]]

    def differences(self, index: int, count: int = 5) -> list[tuple[int, float]]:
        """(neuron, difference) of a row from the mean of its component, the largest magnitudes first."""
        delta = self.concepts[index] - self.mixture.means_[self.members[index]]
        return [(int(i), float(delta[i])) for i in np.argsort(-np.abs(delta), kind="stable")[:count]]


@dataclass(frozen=True)
class Prototypes:
    """Result of :func:`prototypes`.

    Attributes:
        run: the run.
        at: name of the layer.
        classes: name of a class -> its mixture.
    """

    run: ExplainedRun
    at: str
    classes: dict[str, ClassPrototypes]

    def likelihoods(self, concepts: np.ndarray) -> dict[str, np.ndarray]:
        """Class -> log-likelihood of each row of (N, F) relevance by neuron; high for an ordinary answer of it."""
        scaled = _scaled(np.asarray(concepts, float))
        return {name: one.mixture.score_samples(scaled) for name, one in self.classes.items()}

    def gallery(
        self, path: str | Path | None = None, *, samples: int = 4, neurons: int = 5, title: str = "Prototypes"
    ) -> str:
        """A self-contained HTML page: for each class and component the nearest rows, and the rows that deviate most.

        Args:
            path: file to write the page to; None to return it only.
            samples: number of rows of a component.
            neurons: number of neurons that are listed with their relevance.
            title: heading of the page.

        Raises:
            MissingExtraError: when jinja2, or matplotlib for images, is not installed.
        """
        groups = []
        for one in self.classes.values():
            places = np.searchsorted(self.run.numbers, one.rows)
            for k in np.argsort(-one.coverage, kind="stable"):
                shown = [Shown(int(places[i]), one.likelihood[i]) for i in one.nearest(k, samples)]
                strongest = _listed(one.strongest(k, neurons))
                groups.append(Group(f"{one.name}: {one.coverage[k]:.0%}", f"neurons {strongest}", shown))
            shown = [
                Shown(int(places[i]), one.likelihood[i], _listed(one.differences(i, 3)))
                for i in one.deviating(samples)
            ]  # fmt: skip
            groups.append(Group(f"{one.name}: deviating", "least likely; differences from the component", shown))
        intro = (
            "For each class the rows nearest to each component of a mixture of Gaussians over the relevance of neurons "
            f"in {self.at}, with its share of the class, and log-likelihoods. Red is positive and blue negative "
            "relevance, scaled per sample."
        )
        return write_gallery(self.run, groups, title, intro, path)


def prototypes(
    run: str | Path | ExplainedRun,
    at: str | None = None,
    *,
    components: int = 3,
    covariance: str | None = None,
    least: int = 10,
    seed: int = 0,
) -> Prototypes:
    """Fit a mixture of Gaussians over the concept relevance of each class.

    Args:
        run: folder of a run with relevance inside the model (``Explainer(at=...)``).
        at: name of the layer; None for the only one.
        components: number of prototypes of a class.
        covariance: covariance of a component, "full" or "diag"; None for "full" where a class has at least 3 rows for
            each neuron.
        least: classes with fewer rows are left out.
        seed: seed of the fit.

    Raises:
        LatentError: for a layer that the run has no relevance of.
        InputError: if every class is left out.
        MissingExtraError: when scikit-learn is not installed.
    """
    mixtures: Any = require("sklearn.mixture", "spray")
    run = ExplainedRun.open(run)
    table = _scaled(run.latent(at))
    classes = {}
    for name in sorted(set(run.predictions)):
        which = np.flatnonzero(run.predictions == name)
        if len(which) < max(least, components):
            continue
        concepts = table[which]
        kind = covariance or ("full" if len(which) >= _FULL * concepts.shape[1] else "diag")
        mixture = mixtures.GaussianMixture(components, covariance_type=kind, reg_covar=_REGULAR, random_state=seed)
        members = mixture.fit_predict(concepts)
        likelihood = mixture.score_samples(concepts)
        classes[name] = ClassPrototypes(name, run.numbers[which], concepts, mixture, members, likelihood)
    if not classes:
        raise InputError(f"no class has {least} rows: give least=, or explain more rows")
    return Prototypes(run, at or next(iter(run.latents)), classes)


def _scaled(table: np.ndarray) -> np.ndarray:
    total = np.abs(table).sum(1, keepdims=True)
    return table / np.where(total == 0, 1, total)


def _listed(amounts: list[tuple[int, float]]) -> str:
    return ", ".join(f"{neuron} ({amount:+.2f})" for neuron, amount in amounts)
