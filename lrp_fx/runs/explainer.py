"""Rows of texts in, rows of explanations out: for runs, ``datasets.map(batched=True)`` and loaders of batches."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import TextEncoder
from lrp_fx.errors import InputError, type_and_line
from lrp_fx.explain import Target
from lrp_fx.hub.folder import load_folder
from lrp_fx.module import ExplainableModule
from lrp_fx.results import Attribution
from lrp_fx.results.notes import find_notes

#: column of a row of explanations -> what it holds; all but "error" are null where a row failed
COLUMNS: Mapping[str, str] = {
    "tokens": "what each token shows, padding left out",
    "special": "whether each token is none of the text (start, separator, end)",
    "relevance": "relevance of each token",
    "target": "the explained value",
    "prediction": "name of what was explained, null where it has none",
    "absorbed": "the explained value less the relevance of all tokens: biases, softmax and what else the ledger has",
    "ledger": "where the explained value went, by category; null unless it was asked for",
    "notes": 'names of signs that the map is weak (lrp_fx.results.notes), and "cut off" for a text that was too long',
    "error": "why the row could not be explained; null where it could",
}

Row = dict[str, Any]
Text = str | tuple[str, str]


class Explainer:
    """Explains batches of texts: a mapping of columns in, a dict of lists out (:data:`COLUMNS`).

    A row that fails has its error in the column "error", and the others are explained. Where the model is a folder, a
    copy in another process loads it there.

    Attributes:
        text: name of the column with texts, or of two columns that belong together.
        rules: the rule set.
        target: what is explained, as in ``explain``.
        ledger: whether each row has a ledger of its own.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        labels: Any = None,
        rules: RuleSource = "default",
        target: Target = None,
        text: str | tuple[str, str] = "text",
        ledger: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Say what explains; nothing is loaded before the first batch.

        Args:
            model: a module, a pipeline object of transformers, or the folder of a saved Hugging Face model.
            tokenizer: the model's tokenizer; None for that of the folder or the pipeline.
            labels: names of the classes, as in :func:`lrp_fx.convert`.
            rules: the rule set.
            target: of every row: None, a class, or a form of target (a tensor of one entry per row is refused).
            text: column of the texts, or a pair of columns.
            ledger: compute a ledger for each row: a forward and a backward pass more for every row.
            dtype: precision of a model that is loaded from a folder; None for its own.

        Raises:
            InputError: for a target per sample.
        """
        if isinstance(target, torch.Tensor) and target.dim():
            raise InputError("a tensor of targets belongs to one batch: give a target that every row has")
        self._source, self._tokenizer, self._labels, self._dtype = model, tokenizer, labels, dtype
        self.rules, self.target, self.text, self.ledger = rules, target, text, ledger

    @functools.cached_property
    def _loaded(self) -> tuple[Any, dict[str, Any]]:
        own = {} if self._tokenizer is None else {"tokenizer": self._tokenizer}
        if not isinstance(self._source, (str, Path)):
            return self._source, own
        model, tools = load_folder(self._source, self._dtype)
        return model, {**tools, **own}

    @functools.cached_property
    def xmodel(self) -> ExplainableModule:
        """The converted model.

        Raises:
            InputError: for a folder that cannot be read.
        """
        model, tools = self._loaded
        return convert(model, labels=self._labels, rules=self.rules, **tools)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """What makes inputs of texts.

        Raises:
            InputError: without a tokenizer.
        """
        inputs = self.xmodel.encoder
        if inputs is None or inputs.texts is None:
            raise InputError("texts need a tokenizer: Explainer(model, tokenizer=...)")
        return inputs.texts

    def texts(self, batch: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The texts of a batch, one per row, pairs as tuples.

        Raises:
            InputError: where a column is missing.
        """
        names = (self.text,) if isinstance(self.text, str) else self.text
        if missing := [name for name in names if name not in batch]:
            raise InputError(f"no column {missing[0]!r}: there are {', '.join(map(str, batch))}")
        columns = [list(batch[name]) for name in names]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def length(self, text: Any) -> int:
        """Number of tokens that the model reads of a text; 0 of what cannot be read, which ``explain`` says why."""
        if not _is_text(text):
            return 0
        encoder = self.encoder
        try:
            count = encoder.length(text)
        except Exception:
            return 0
        return count if self.encoder.limit is None else min(count, self.encoder.limit)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Explain a batch.

        Raises:
            InputError: where the column of texts is missing.
        """
        rows = self.explain(self.texts(batch))
        return {name: [row.get(name) for row in rows] for name in COLUMNS}

    def explain(self, texts: Sequence[Any]) -> list[Row]:
        """A row of explanations for each text."""
        rows: list[Row] = [{"error": f"no text: {text!r:.60}"} for text in texts]
        self._fill(rows, texts, [i for i, text in enumerate(texts) if _is_text(text)])
        return rows

    def _fill(self, rows: list[Row], texts: Sequence[Text], which: list[int]) -> None:
        """Explain some rows together; where that fails, each half of them by itself."""
        if not which:
            return
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="text .* the rest was cut off")  # a note of the row says so
                result = self.xmodel.explain([texts[i] for i in which], target=self.target)
                made = [self._row(result, n, texts[i]) for n, i in enumerate(which)]
        except Exception as error:  # of whichever library: it is the row's, and the run goes on
            if len(which) == 1:
                rows[which[0]] = {"error": type_and_line(error)}
                return
            middle = len(which) // 2
            self._fill(rows, texts, which[:middle])
            self._fill(rows, texts, which[middle:])
            return
        for i, row in zip(which, made, strict=True):
            rows[i] = row

    def _row(self, result: Attribution, sample: int, text: Text) -> Row:
        name = result.token_inputs[0]
        tokens = result.tokens(name)[sample]
        kept = [i for i, padding in enumerate(tokens.padding) if not padding]
        own = {n: r[sample : sample + 1] for n, r in result.relevance.items()}
        value = result.target[sample : sample + 1]
        ledger = dict(result[sample].amounts()) if self.ledger else None
        notes = [note.name for note in find_notes(own, value, ledger)]
        limit = self.encoder.limit
        too_long = limit is not None and len(kept) >= limit and self.encoder.length(text) > limit
        answers = result.context.answers
        return {
            "tokens": [tokens.texts[i] for i in kept],
            "special": [tokens.special[i] for i in kept],
            "relevance": own[name][0, kept].float().cpu().numpy(),
            "target": float(value),
            "prediction": None if answers is None else answers[sample],
            "absorbed": float(value) - float(sum(r.double().sum() for r in own.values())),
            "ledger": ledger,
            "notes": [*notes, *(["cut off"] if too_long else [])],
            "error": None,
        }

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which loads and converts for itself."""
        return {n: v for n, v in vars(self).items() if n not in ("_loaded", "xmodel", "encoder")}


def _is_text(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, str) for part in parts)
