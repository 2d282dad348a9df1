"""Global views: relevance of words, neurons and heads over a whole data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_fx.concepts.explained_run import ExplainedRun
from lrp_fx.errors import InputError
from lrp_fx.viz.amount_plots import draw_bars
from lrp_fx.viz.swarm import draw_beeswarm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = ("beeswarm", "bars")


@dataclass(frozen=True)
class GlobalView:
    """Relevance of many words, neurons or heads, the largest mean magnitude first.

    Attributes:
        of: "words", or the name of a tensor inside the model.
        names: a name for each word, neuron or head.
        amounts: its relevance, at each occurrence of a word, in each row for a neuron or head.
        prediction: the class of the rows; None for all.
    """

    of: str
    names: tuple[str, ...]
    amounts: tuple[np.ndarray, ...] = field(repr=False)
    prediction: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean relevance of each."""
        return np.array([amounts.mean() for amounts in self.amounts])

    @cached_property
    def magnitude(self) -> np.ndarray:
        """Mean magnitude of relevance of each."""
        return np.array([np.abs(amounts).mean() for amounts in self.amounts])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each: name, count, mean, magnitude (for a data frame)."""
        listed = zip(self.names, self.amounts, self.mean.tolist(), self.magnitude.tolist(), strict=True)
        return [{"name": n, "count": len(a), "mean": mean, "magnitude": size} for n, a, mean, size in listed]

    def plot(self, kind: str = "beeswarm", top: int = 15) -> Figure:
        """The first ``top``: each occurrence as a point ("beeswarm"), or mean magnitudes ("bars").

        Raises:
            InputError: for an unknown kind.
            MissingExtraError: when matplotlib is not installed.
        """
        if kind not in _KINDS:
            raise InputError(f"kind={kind!r}: choose one of {', '.join(_KINDS)}")
        what = "words" if self.of == "words" else f"neurons or heads of '{self.of}'"
        title = f"relevance of {what}{f', rows explained as {self.prediction!r}' if self.prediction else ''}"
        if kind == "bars":
            amounts = list(zip(self.names[:top], self.magnitude[:top].tolist(), strict=True))
            return draw_bars(amounts, title=f"mean magnitude of {title}")
        label = "relevance of each occurrence (bar: mean)" if self.of == "words" else "relevance in a row (bar: mean)"
        return draw_beeswarm(self.names[:top], self.amounts[:top], title=title, label=label)


def global_view(
    run: str | Path | ExplainedRun, of: str | None = "words", *, prediction: str | None = None, least: int = 5
) -> GlobalView:
    """Relevance of words, or of the neurons or heads of a tensor inside the model, over all rows of a run.

    Args:
        run: folder of a run (:func:`lrp_fx.run`).
        of: "words" (in lower case, without special tokens), or the name of a tensor in the run's column "latents".
        prediction: only rows whose target has this name; None for all. Means over several classes mix relevance for
            different targets.
        least: smallest number of occurrences of a word.

    Raises:
        InputError: for words of images or sounds, and if nothing is left.
        LatentError: for a tensor that the run has no relevance of.
    """
    run = ExplainedRun.open(run)
    chosen = np.ones(len(run.predictions), bool) if prediction is None else run.predictions == prediction
    if of == "words":
        groups = _by_word(run, chosen, least)
    else:
        table = run.latent(of)[chosen]
        groups = {str(i): column for i, column in enumerate(table.T) if len(column)}
    if not groups:
        raise InputError(f"no row with prediction={prediction!r} has {of} at least {least} times")
    names = sorted(groups, key=lambda name: -float(np.abs(groups[name]).mean()))
    return GlobalView(of or next(iter(run.latents)), tuple(names), tuple(groups[n] for n in names), prediction)


def _by_word(run: ExplainedRun, chosen: np.ndarray, least: int) -> dict[str, np.ndarray]:
    amounts: dict[str, list[float]] = {}
    for included, words in zip(chosen, run.words(), strict=True):
        for word, amount in words if included else ():
            amounts.setdefault(word.lower(), []).append(amount)
    return {word: np.array(listed) for word, listed in amounts.items() if len(listed) >= least}
