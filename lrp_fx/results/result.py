"""The base of all results: sums over words and layers, tables, pictures, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from lrp_fx.errors import InputError, MissingExtraError
from lrp_fx.extras import require
from lrp_fx.results import document, pictures, tables, viewing, views
from lrp_fx.results.batch import Batch
from lrp_fx.results.latent_rows import Neurons
from lrp_fx.results.merging import Grouping, sum_layers, without_features
from lrp_fx.results.stored import Stored
from lrp_fx.results.tables import Share
from lrp_fx.results.to_shap import to_shap
from lrp_fx.results.words import By
from lrp_fx.viz import fragment, page, write_page
from lrp_fx.viz.terminal import printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_NOTEBOOK = 8  #: largest number of samples in a notebook


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(Batch, Stored):
    """A batch of explained samples that can be summed, drawn and saved."""

    def merge(self, by: By = "words") -> Self:
        """Merge tokens to words or longer parts, with summed relevance. Totals and the ledger do not change.

        With one input of tokens, latents with a row per token are summed, too. Merged inputs lose their ids.

        Args:
            by: "words", "sentences", spans of positions [(start, end), ...] (other positions stay alone), or a
                callable from the :class:`lrp_fx.results.Tokens` of a sample to a group name for each token.

        Raises:
            InputError: without an input of tokens, and for groups that do not fit the tokens.
        """
        names = self.token_inputs
        if not names:
            raise InputError("no input of this result has tokens: nothing to merge")
        return self._merged({name: Grouping(self.tokens(name), by) for name in names})

    def _merged(self, groupings: dict[str, Grouping]) -> Self:
        relevance, tokens = dict(self.relevance), dict(self.context.tokens)
        rank = len(self.LEADING)
        for name, grouping in groupings.items():
            relevance[name] = grouping.sums(self.relevance[name], self.SAMPLES, rank)
            tokens[name] = grouping.tokens
        latents = self.latents
        if len(groupings) == 1:
            grouping = next(iter(groupings.values()))
            latents = {n: self._latent_merged(v, grouping, rank) for n, v in latents.items()}
        return self._derived(
            relevance=relevance,
            latents=latents,
            inputs={n: v for n, v in self.inputs.items() if n not in groupings},
            context=replace(self.context, tokens=tokens),
        )

    def _latent_merged(self, value: Tensor, grouping: Grouping, rank: int) -> Tensor:
        fits = value.dim() > rank and (value.shape[self.SAMPLES], value.shape[rank]) == tuple(grouping.index.shape)
        return grouping.sums(value, self.SAMPLES, rank) if fits else value

    def aggregate(self, over: str) -> Self:
        """Sum relevance. Totals and the ledger do not change.

        Args:
            over: "samples" (the result is one sample, for the sum of all targets; entries of the inputs must have the
                same meaning in all samples), "features" (latents and floating inputs get one number per position or
                pixel: (B, S, D) to (B, S), (B, C, H, W) to (B, H, W)), or "layers" (latents whose names differ in
                numbers only are added, under a name with a star).

        Raises:
            InputError: for another name, and for layers of different sizes.
        """
        if over == "samples":
            return self._of_all_samples()
        if over == "features":
            rank = len(self.LEADING)
            relevance = {n: without_features(r, rank) for n, r in self.relevance.items()}
            return self._derived(
                relevance=relevance, latents={n: without_features(v, rank) for n, v in self.latents.items()}
            )
        if over == "layers":
            return self._derived(latents=sum_layers(self.latents))
        raise InputError(f'over={over!r}: choose "samples", "features" or "layers"')

    def _of_all_samples(self) -> Self:
        def total(tensor: Tensor) -> Tensor:
            shared = tensor.dim() <= self.SAMPLES or tensor.shape[self.SAMPLES] != len(self)
            return tensor if shared else tensor.sum(self.SAMPLES, keepdim=True)

        context = replace(self.context, tokens={}, answers=None)
        return self._derived(**self._mapped(total), inputs={}, context=context)

    def top(self, k: int = 5, sign: str | int = "both", by: str = "word", special: bool = False) -> list[Share]:
        """The k shares with the largest magnitude of every sample (and target), the largest first.

        Args:
            k: number of shares.
            sign: "positive", "negative" or "both"; also 1, -1, 0.
            by: "word" or "token", for inputs of tokens.
            special: include special tokens (start, separator, end).
        """
        return tables.top(self._by(by), k, sign, special)

    def to_dataframe(self, by: str = "token") -> Any:
        """A pandas data frame with a row per token or entry of an input, word, category of the ledger, or layer.

        Args:
            by: "token", "word", "category" or "layer" (sums of latents).

        Raises:
            MissingExtraError: if pandas is not installed.
            InputError: for another name, and for a result without a ledger or latents.
        """
        pandas: Any = require("pandas", "results")
        if by == "category":
            return pandas.DataFrame(self._category_rows())
        if by == "layer":
            return pandas.DataFrame(tables.layer_rows(self))
        return pandas.DataFrame(tables.token_rows(self._by(by)))

    def to_shap(self, *, input: str | None = None) -> Any:
        """A ``shap.Explanation``: for its plots of texts, images and tables, of one sample or over a data set.

        Values and base value add up to the explained value: the base is all that the input does not have (biases,
        softmax, other inputs). Values of pictures have their channels last; of several targets, shap's last dimension
        counts them.

        Args:
            input: name of the input; None for the first, one of tokens before others.

        Raises:
            InputError: for an input that is not there, or that samples share.
            MissingExtraError: when shap is not installed.
        """
        return to_shap(self, input)

    def view(
        self, path: str | Path = "view.html", *, title: str | None = None, ledger: bool = True, neurons: Neurons = 0
    ) -> Path:
        """Write an interactive page of the result: one HTML file that needs no network (:func:`lrp_fx.view`).

        The page is not opened.

        Args:
            path: file to write.
            title: heading of the page.
            ledger: whether to include the ledger of every sample, computed by one sweep each if necessary.
            neurons: neurons of latents (``at=``) with rows of their own (:func:`lrp_fx.view`).

        Returns:
            ``path``.
        """
        return viewing.view(self, path=path, title=title, ledger=ledger, neurons=neurons)

    def _category_rows(self) -> list[tables.Row]:
        raise InputError("several targets at once have no ledger: use explain(target=...) with one target")

    def plot(self, kind: str = "auto", *, input: str | None = None) -> Figure:
        """A matplotlib figure, outside of pyplot: ``result.plot().savefig("why.svg")``.

        Args:
            kind: "tokens", "image" (next to its map), "overlay", "waveform", "spectrogram", "matrix" (targets by
                tokens, or latents by tokens), "heads" (heads by tokens: ``at="*@mixed"``), "bar", "series", "tabular";
                for an :class:`lrp_fx.Attribution` also "waterfall", which ends at the explained value. "auto" chooses
                by the input.
            input: name of the input to draw; None for the first, inputs of tokens before others.

        Raises:
            InputError: for a kind that does not fit, and for a batch if the figure shows one sample.
            MissingExtraError: if matplotlib is not installed.
        """
        return pictures.draw(self, kind, input)

    def show(self, *, words: bool = True, ledger: bool = True, console: Console | None = None) -> None:
        """Print every sample: coloured words, the largest shares, the ledger, notes.

        Args:
            words: show whole words instead of the tokenizer's pieces.
            ledger: show the ledger, computed if necessary.
            console: a rich console; None for standard output.
        """
        samples = self._in_words(words)._samples(ledger)
        printed(*map(views.rendered, samples), console=console)

    def to_html(
        self,
        *,
        title: str = "What the answer rests on",
        facts: Mapping[str, str] | None = None,
        words: bool = True,
        ledger: bool = True,
    ) -> str:
        """A self-contained HTML page without scripts; texts are escaped.

        Args:
            title: heading of the page.
            facts: names and values to show with every sample ("model": "...").
            words: show whole words instead of the tokenizer's pieces.
            ledger: show the ledger, computed if necessary.

        Raises:
            MissingExtraError: if jinja2 (for images and sound, matplotlib) is not installed.
        """
        samples = self._in_words(words)._samples(ledger)
        return page([views.panel(sample, facts or {}) for sample in samples], title)

    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write :meth:`to_html` to a file, and return its path."""
        return write_page(path, self.to_html(**options))

    def _repr_html_(self) -> str | None:
        """For notebooks: the first samples, with the ledger if it was computed. None without jinja2 (or matplotlib)."""
        try:
            samples = self[:_NOTEBOOK]._in_words(True)._samples(None)
            more = len(self) - len(samples)
            return fragment([views.panel(s, {}) for s in samples], f"{more} more samples" if more else "")
        except MissingExtraError:
            return None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For notebooks: HTML, and plain text where HTML cannot be shown."""
        html = self._repr_html_()
        return {"text/plain": repr(self), **({"text/html": html} if html is not None else {})}

    def _samples(self, ledger: bool | None) -> list[views.Sample]:
        """The samples to show, with their numbers if there are several."""
        samples = [one._sample(ledger) for one in self]
        if len(samples) == 1:
            return samples
        return [replace(one, heading=f"sample {number}: {one.heading}") for number, one in enumerate(samples)]

    def _sample(self, ledger: bool | None) -> views.Sample:
        """The parts of the only sample to show; for None, the ledger only if it was computed."""
        return views.sample_of(self, ledger)

    def _in_words(self, words: bool) -> Self:
        return self.merge("words") if words and self.token_inputs else self

    def _document(self, inputs: bool) -> document.Document:
        about, tensors = self._described()
        tensors |= {"target": self.target}
        for part in document.PARTS if inputs else document.PARTS[:-1]:
            tensors |= {f"{part}/{name}": tensor for name, tensor in getattr(self, part).items()}
        return document.Document({**document.head(self.KIND, self.ruleset, self.context), **about}, tensors)

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Further contents of a file for this kind of result: plain data, and tensors by name."""
        return {}, {}

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        """The result of a document."""
        groups = {part: document.part_of(tensors, part) for part in document.PARTS}
        context = document.read_context(about)
        return cls(**groups, target=tensors["target"], ruleset=document.text(about, "rules"), context=context, **more)

    def _check(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: if they do not.
        """
        if self.target.dim() != len(self.LEADING) or not self.target.is_floating_point():
            raise ValueError(f"targets of shape {tuple(self.target.shape)} and {self.target.dtype}")
        for name, relevance in self.relevance.items():
            if not relevance.is_floating_point():
                raise ValueError(f"the relevance of '{name}' is {relevance.dtype}")
        answers = self.context.answers
        if answers is not None and len(answers) != len(self):
            raise ValueError(f"{len(answers)} answers for {len(self)} samples")
        for name, tokens in self.context.tokens.items():
            sizes = {len(one) for one in tokens}
            if name not in self.relevance or len(tokens) != len(self) or sizes - {self._positions(name)}:
                raise ValueError(f"the tokens of '{name}' do not fit its relevance")

    def _positions(self, name: str) -> int:
        """Number of positions of an input with tokens."""
        return self.relevance[name].shape[-1]

    def _by(self, by: str) -> Self:
        if by not in ("word", "token"):
            raise InputError(f"by={by!r}: choose token, word, category or layer")
        return self._in_words(by == "word")
