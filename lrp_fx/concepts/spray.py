"""Spectral relevance analysis (SpRAy; Lapuschkin et al. 2019, Nature Communications 10, 1096).

Relevance maps of one class are clustered. A cluster whose maps share a place or a word that has nothing to do with the
class is a strategy of a Clever Hans: the model reads a watermark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lrp_fx.concepts.explained_run import ExplainedRun
from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.viz.cluster_plots import draw_clusters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = 500  #: words of a vocabulary
_EIGENVALUES = 12  #: number of the smallest eigenvalues
_EMBEDDINGS = ("spectral", "tsne", "umap")


@dataclass(frozen=True)
class Clusters:
    """Clusters of the relevance maps of one class.

    Attributes:
        name: name of the class.
        rows: (N,) numbers of the rows in the data set.
        labels: (N,) cluster of each row; 0 is the largest.
        eigenvalues: the smallest eigenvalues of the graph's Laplacian; a large step behind the k-th means k clusters.
        places: (N, 2) places in a plane.
        maps: (N, ...) maps that were clustered: small images or series, or relevance by word.
        words: names of the words; empty for other kinds.
    """

    name: str
    rows: np.ndarray
    labels: np.ndarray
    eigenvalues: np.ndarray
    places: np.ndarray = field(repr=False)
    maps: np.ndarray = field(repr=False)
    words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.labels.max()) + 1

    def members(self, cluster: int) -> np.ndarray:
        """Numbers of the rows of a cluster."""
        return self.rows[self.labels == cluster]

    def mean(self, cluster: int) -> np.ndarray:
        """The mean map of a cluster."""
        return self.maps[self.labels == cluster].mean(0)

    def top_words(self, cluster: int, count: int = 6) -> list[tuple[str, float]]:
        """The words of a cluster with the largest mean relevance by magnitude; none for images and sounds."""
        mean = self.mean(cluster) if self.words else np.zeros(0)
        return [(self.words[i], float(mean[i])) for i in np.argsort(-np.abs(mean))[:count]]

    def plot(self) -> Figure:
        """Rows in a plane, coloured by cluster; eigenvalues; the mean map of each cluster.

        Raises:
            MissingExtraError: when matplotlib is not installed.
        """
        means = [self.top_words(i) if self.words else self.mean(i) for i in range(len(self))]
        return draw_clusters(self.places, self.labels, self.eigenvalues, means, title=self.name)


def spray(
    run: str | Path | ExplainedRun,
    *,
    clusters: int | None = None,
    size: int = 16,
    neighbours: int = 8,
    most: int = 1000,
    embedding: str = "spectral",
    seed: int = 0,
) -> dict[str, Clusters]:
    """Cluster the relevance maps of a run, for each class that it explains.

    Maps are scaled to at most ``size`` entries along each dimension, by sums over areas, and to a total magnitude of 1.
    Texts are compared by relevance of their words. The clusters are those of the graph of nearest neighbours: k-means
    on eigenvectors of its normalized Laplacian.

    Args:
        run: folder of a run (:func:`lrp_fx.run`).
        clusters: number of clusters; None for the largest step between eigenvalues.
        size: largest length of a dimension of a map.
        neighbours: number of neighbours of a map in the graph.
        most: most rows of a class, evenly spaced among all; time grows with its third power.
        embedding: places in a plane by "spectral" (two eigenvectors), "tsne" or "umap".
        seed: seed of k-means and of the embedding.

    Returns:
        name of a class ("" without names) -> its clusters; classes with fewer than 3 rows are left out.

    Raises:
        InputError: for maps of several shapes, and an unknown embedding.
        MissingExtraError: when scikit-learn, or umap-learn for "umap", is not installed.
    """
    if embedding not in _EMBEDDINGS:
        raise InputError(f"embedding={embedding!r}: choose one of {', '.join(_EMBEDDINGS)}")
    require("sklearn", "spray")
    run = ExplainedRun.open(run)
    chosen = {name: _evenly(np.flatnonzero(run.predictions == name), most) for name in sorted(set(run.predictions))}
    chosen = {name: rows for name, rows in chosen.items() if len(rows) > 2}
    maps, words = _word_maps(run, chosen) if run.kind == "text" else (_small_maps(run, chosen, size), ())
    return {
        name: _clustered(name, run.numbers[rows], maps[name], words, clusters, neighbours, embedding, seed)
        for name, rows in chosen.items()
    }


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))] if len(rows) > most else rows


def _small_maps(run: ExplainedRun, chosen: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    of_row = {int(row): name for name, rows in chosen.items() for row in rows}
    listed: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    for number, relevance in enumerate(run.maps()):
        if number in of_row:
            listed[of_row[number]].append(_small(relevance, size))
    shapes = {one.shape for maps in listed.values() for one in maps}
    if len(shapes) > 1:
        raise InputError(f"maps of the shapes {sorted(shapes)} cannot be compared: give size={min(map(min, shapes))}")
    return {name: np.stack(maps) for name, maps in listed.items()}


def _small(relevance: np.ndarray, size: int) -> np.ndarray:
    """A map with at most ``size`` entries along each of one or two dimensions, of means over areas."""
    if relevance.ndim > 2:
        raise InputError(f"a map of shape {relevance.shape} is no plane and no series")
    shape = tuple(min(n, size) for n in relevance.shape)
    pool = torch.nn.functional.adaptive_avg_pool2d if relevance.ndim == 2 else torch.nn.functional.adaptive_avg_pool1d
    pooled = pool(torch.tensor(relevance, dtype=torch.float64)[None], shape if relevance.ndim == 2 else shape[0])
    return pooled[0].numpy()


def _word_maps(run: ExplainedRun, chosen: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Relevance of the most frequent words in each row."""
    rows = [[(word.lower(), amount) for word, amount in row] for row in run.words()]
    counts = Counter(word for row in rows for word in {word for word, _ in row})
    words = tuple(word for word, _ in counts.most_common(_WORDS))
    column = {word: i for i, word in enumerate(words)}
    table = np.zeros((len(rows), len(words)))
    for i, row in enumerate(rows):
        for word, amount in row:
            if word in column:
                table[i, column[word]] += amount
    return {name: table[which] for name, which in chosen.items()}, words


def _clustered(
    name: str,
    rows: np.ndarray,
    maps: np.ndarray,
    words: tuple[str, ...],
    clusters: int | None,
    neighbours: int,
    embedding: str,
    seed: int,
) -> Clusters:
    scale = np.abs(maps).reshape(len(maps), -1).sum(1)
    flat = maps.reshape(len(maps), -1) / np.where(scale == 0, 1, scale)[:, None]
    values, vectors = _spectrum(flat, min(neighbours, len(flat) - 1))
    count = int(np.argmax(np.diff(values))) + 1 if clusters is None else min(clusters, len(flat))
    chosen = vectors[:, :count]
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    cluster: Any = require("sklearn.cluster", "spray")
    labels = cluster.KMeans(count, n_init=10, random_state=seed).fit_predict(unit)
    largest_first = np.argsort(np.argsort(-np.bincount(labels, minlength=count), kind="stable"))
    places = _places(flat, vectors, embedding, seed)
    return Clusters(name, rows, largest_first[labels], values, places, flat.reshape(maps.shape), words)


def _spectrum(flat: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenvalues of the normalized Laplacian of the graph of nearest neighbours, and eigenvectors."""
    graphs: Any = require("sklearn.neighbors", "spray")
    sparse: Any = require("scipy.sparse.csgraph", "spray")
    linear: Any = require("scipy.linalg", "spray")
    graph = graphs.kneighbors_graph(flat, neighbours)
    laplacian = sparse.laplacian(graph.maximum(graph.T), normed=True).toarray()
    return linear.eigh(laplacian, subset_by_index=[0, min(_EIGENVALUES, len(flat)) - 1])


def _places(flat: np.ndarray, vectors: np.ndarray, embedding: str, seed: int) -> np.ndarray:
    if embedding == "spectral":
        return vectors[:, 1:3]
    if embedding == "umap":
        umap: Any = require("umap", "umap")
        return umap.UMAP(n_neighbors=min(15, len(flat) - 1), random_state=seed, n_jobs=1).fit_transform(flat)
    manifold: Any = require("sklearn.manifold", "spray")
    return manifold.TSNE(random_state=seed, perplexity=min(30, (len(flat) - 1) / 3)).fit_transform(flat)
