"""What all results can do: sums over words and layers, tables, pictures, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from lrp_fx.errors import InputError, MissingExtraError
from lrp_fx.extras import require
from lrp_fx.results import document, pictures, storage, tables, viewing, views
from lrp_fx.results.batch import Batch
from lrp_fx.results.merging import Grouping, sum_layers, without_features
from lrp_fx.results.tables import Share
from lrp_fx.results.words import By
from lrp_fx.viz import fragment, page, write_page
from lrp_fx.viz.terminal import printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_NOTEBOOK = 8  #: samples that a notebook shows


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(Batch):
    """A batch of explained samples, to be summed, looked at and kept."""

    #: what files call this kind of result
    KIND: ClassVar[str]
    #: kinds of results by name
    KINDS: ClassVar[dict[str, type[Result]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "KIND" in vars(cls):
            Result.KINDS[cls.KIND] = cls

    def merge(self, by: By = "words") -> Self:
        """Tokens joined to words or longer parts, their relevance summed: totals and the ledger stay as they are.

        Latents with a row per token are summed alike, where there is one input of tokens. Inputs of tokens are not
        kept: their ids are of the tokens before.

        Args:
            by: "words", "sentences", spans of positions [(start, end), ...] (what is in none stays alone), or a
                callable that gets the :class:`lrp_fx.results.Tokens` of a sample and names a group for each.

        Raises:
            InputError: where no input has tokens, and for groups that do not fit them.
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
        """Summed, so that totals and the ledger stay as they are.

        Args:
            over: "samples" (one sample remains, that of the sum of all targets; inputs must be of one size and
                meaning), "features" (latents and floating inputs become one number per position or pixel: (B, S, D)
                to (B, S), (B, C, H, W) to (B, H, W)), or "layers" (latents whose names differ in numbers only become
                one, named with a star).

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
        """What has most relevance: the k largest by magnitude of every sample (and target), the largest first.

        Args:
            k: how many.
            sign: "positive", "negative" or "both"; also 1, -1, 0.
            by: "word" or "token", of inputs of tokens.
            special: count tokens that are none of the text (start, separator, end), too.
        """
        return tables.top(self._by(by), k, sign, special)

    def to_dataframe(self, by: str = "token") -> Any:
        """A pandas data frame with a row per token or entry of an input, word, category of the ledger, or layer.

        Args:
            by: "token", "word", "category" or "layer" (what ``at=`` collected, summed).

        Raises:
            MissingExtraError: when pandas is not installed.
            InputError: for another name, and where there is nothing of that kind.
        """
        pandas: Any = require("pandas", "results")
        if by == "category":
            return pandas.DataFrame(self._category_rows())
        if by == "layer":
            return pandas.DataFrame(tables.layer_rows(self))
        return pandas.DataFrame(tables.token_rows(self._by(by)))

    def view(self, path: str | Path = "view.html", *, title: str | None = None, ledger: bool = True) -> Path:
        """Write a page to look at the result with: one html file that needs no network (:func:`lrp_fx.view`).

        Nothing is opened.

        Args:
            path: where to write.
            title: heading of the page.
            ledger: whether the ledger of every sample is in it; it is computed where it was not yet, by a sweep each.

        Returns:
            ``path``.
        """
        return viewing.view(self, path=path, title=title, ledger=ledger)

    def _category_rows(self) -> list[tables.Row]:
        raise InputError("several targets at once have no ledger: explain(target=...) of one for its categories")

    def plot(self, kind: str = "auto", *, input: str | None = None) -> Figure:
        """A figure of matplotlib, which pyplot knows nothing of: ``result.plot().savefig("why.svg")``.

        Args:
            kind: "tokens", "image" (beside the map), "overlay", "waveform", "spectrogram", "matrix" (generated or
                explained by source tokens; latents by tokens), "bar", "series", "tabular"; of an
                :class:`lrp_fx.Attribution` also "waterfall", which ends at the explained value. "auto" is what suits.
            input: name of the input to draw; None for the first, one of tokens before others.

        Raises:
            InputError: for a kind that does not fit, and for a batch where a figure shows one sample.
            MissingExtraError: when matplotlib is not installed.
        """
        return pictures.draw(self, kind, input)

    def show(self, *, words: bool = True, ledger: bool = True, console: Console | None = None) -> None:
        """Print every sample: coloured words, what is most relevant, the ledger, notes.

        Args:
            words: show whole words, not the tokenizer's pieces.
            ledger: show where all of the explained value went (computed where it was not yet).
            console: rich's console; standard output where None.
        """
        samples = views.samples_of(self._in_words(words), ledger)
        printed(*map(views.rendered, samples), console=console)

    def to_html(
        self,
        *,
        title: str = "What the answer rests on",
        facts: Mapping[str, str] | None = None,
        words: bool = True,
        ledger: bool = True,
    ) -> str:
        """A self-contained page: no script, no network; what stands in a text is shown as text.

        Args:
            title: heading of the page.
            facts: what to say of every sample ("model": "...").
            words: show whole words, not the tokenizer's pieces.
            ledger: show where all of the explained value went (computed where it was not yet).

        Raises:
            MissingExtraError: when jinja2 (for images and sound, matplotlib) is not installed.
        """
        samples = views.samples_of(self._in_words(words), ledger)
        return page([views.panel(sample, facts or {}) for sample in samples], title)

    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write :meth:`to_html` to a file, and return its path."""
        return write_page(path, self.to_html(**options))

    def _repr_html_(self) -> str | None:
        """For notebooks: the first samples; the ledger where it was computed. None without jinja2 (or matplotlib)."""
        try:
            samples = views.samples_of(self[:_NOTEBOOK]._in_words(True), None)
            more = len(self) - len(samples)
            return fragment([views.panel(s, {}) for s in samples], f"{more} more samples" if more else "")
        except MissingExtraError:
            return None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For notebooks: HTML, and plain text where HTML cannot be shown."""
        html = self._repr_html_()
        return {"text/plain": repr(self), **({"text/html": html} if html is not None else {})}

    def _in_words(self, words: bool) -> Self:
        return self.merge("words") if words and self.token_inputs else self

    def save(self, path: str | Path, *, inputs: bool = True) -> Path:
        """Write the result to a file that :func:`lrp_fx.load_result` reads: now, and in every later version.

        The file says what it is of: tokens, names of classes, rules, versions, the ledger, a digest of the model. It
        holds neither code nor pickles, nor what would be computed again (:attr:`sources`).

        Args:
            path: ``*.safetensors``, or ``*.json.gz``, which any language reads.
            inputs: whether the inputs are in it.

        Raises:
            InputError: for another suffix.
            MissingExtraError: for ``*.safetensors`` without the package.
            OSError: where nothing can be written; what was there before stays.
        """
        about, tensors = self._described()
        tensors |= {"target": self.target}
        for part in document.PARTS if inputs else document.PARTS[:-1]:
            tensors |= {f"{part}/{name}": tensor for name, tensor in getattr(self, part).items()}
        head = document.head(self.KIND, self.ruleset, self.context)
        return storage.write(document.Document({**head, **about}, tensors), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a result that :meth:`save` wrote.

        Raises:
            InputError: for a file that is not there, damaged, of a later schema, or no result of this kind.
            MissingExtraError: for ``*.safetensors`` without the package.
        """
        stored = storage.read(path)
        try:
            about = document.check_head(stored.about)
            kind = Result.KINDS[document.text(about, "kind")]
            made = kind._read(about, stored.tensors)
            made._check()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as reason:
            raise storage.refused(path, reason) from reason
        if not isinstance(made, cls):
            raise InputError(f"{str(path)!r} holds a result of the kind {made.KIND}, not {cls.__name__}")
        return made

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file says of this kind of result alone: plain data, and tensors by name."""
        return {}, {}

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        """A result of a document."""
        parts = {part: document.part_of(tensors, part) for part in document.PARTS}
        context = document.read_context(about)
        return cls(**parts, target=tensors["target"], ruleset=document.text(about, "rules"), context=context, **more)

    def _check(self) -> None:
        """Look whether the parts fit together.

        Raises:
            ValueError: where they do not.
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
            if name not in self.relevance or len(tokens) != len(self) or sizes - {self.relevance[name].shape[-1]}:
                raise ValueError(f"tokens of '{name}' that do not belong to its relevance")

    def _by(self, by: str) -> Self:
        if by not in ("word", "token"):
            raise InputError(f"by={by!r}: choose token, word, category or layer")
        return self._in_words(by == "word")
