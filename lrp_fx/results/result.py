"""What all results can do: sums over words and layers, tables, pictures, files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.results import tables
from lrp_fx.results.batch import Batch
from lrp_fx.results.merging import Grouping, sum_layers, without_features
from lrp_fx.results.tables import Share
from lrp_fx.results.words import By


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(Batch):
    """A batch of explained samples, to be summed, looked at and kept."""

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

    def _category_rows(self) -> list[tables.Row]:
        raise InputError("several targets at once have no ledger: explain(target=...) of one for its categories")

    def _by(self, by: str) -> Self:
        if by not in ("word", "token"):
            raise InputError(f"by={by!r}: choose token, word, category or layer")
        return self.merge("words") if by == "word" and self.token_inputs else self
