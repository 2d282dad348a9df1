"""Rows of texts in, rows of explanations out: for runs, ``datasets.map(batched=True)`` and data loaders."""

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

#: column -> its meaning; in a row that failed, all columns but "error" are null
COLUMNS: Mapping[str, str] = {
    "tokens": "text of each token, without padding",
    "special": "whether each token is a special token outside the text (start, separator, end)",
    "relevance": "relevance of each token",
    "target": "the explained value",
    "prediction": "name of the target; null without a name",
    "absorbed": "the explained value less the relevance of all tokens: biases, softmax and other ledger entries",
    "ledger": "the ledger by category; null unless ledgers are computed",
    "notes": 'names of notes that the map is weak (lrp_fx.results.notes), and "cut off" for a truncated text',
    "error": "the error of a row that could not be explained, otherwise null",
}

Row = dict[str, Any]
Text = str | tuple[str, str]


class Explainer:
    """Explains batches of texts: a mapping of columns in, a dict of lists out (:data:`COLUMNS`).

    The error of a row is stored in its column "error"; the other rows are explained. For a model given by its folder,
    copies in other processes load the model there.

    Attributes:
        text: name of the column with texts, or names of two columns with pairs.
        rules: the rule set.
        target: the target, as in ``explain``.
        ledger: whether to compute a ledger for each row.
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
        """Store the arguments; the model is loaded and converted at the first batch.

        Args:
            model: a module, a pipeline of transformers, or the folder of a saved Hugging Face model.
            tokenizer: the model's tokenizer; None for the one in the folder or the pipeline.
            labels: names of the classes, as in :func:`lrp_fx.convert`.
            rules: the rule set.
            target: the target of every row, as in ``explain``, but no tensor with one entry per row.
            text: column of the texts, or a pair of columns.
            ledger: compute a ledger for each row, with one more forward and backward pass per row.
            dtype: precision of a model from a folder; None for the saved one.

        Raises:
            InputError: for a tensor of targets.
        """
        if isinstance(target, torch.Tensor) and target.dim():
            raise InputError("a tensor of targets fits one batch only: give one target for every row")
        self._source, self._tokenizer, self._labels, self._dtype = model, tokenizer, labels, dtype
        self.rules, self.target, self.text, self.ledger = rules, target, text, ledger

    @functools.cached_property
    def _loaded(self) -> tuple[Any, dict[str, Any]]:
        tokenizer = {} if self._tokenizer is None else {"tokenizer": self._tokenizer}
        if not isinstance(self._source, (str, Path)):
            return self._source, tokenizer
        model, tools = load_folder(self._source, self._dtype)
        return model, {**tools, **tokenizer}

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
        """The encoder of texts.

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
            InputError: for a missing column.
        """
        names = (self.text,) if isinstance(self.text, str) else self.text
        if missing := [name for name in names if name not in batch]:
            raise InputError(f"no column {missing[0]!r}: there are {', '.join(map(str, batch))}")
        columns = [list(batch[name]) for name in names]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def length(self, text: Any) -> int:
        """Number of tokens of a text after truncation; 0 for a value that cannot be encoded."""
        if not _is_text(text):
            return 0
        encoder = self.encoder
        try:
            count = encoder.length(text)
        except Exception:
            return 0
        return count if self.encoder.limit is None else min(count, self.encoder.limit)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """The columns of a batch, and :data:`COLUMNS`; one of the same name is replaced.

        Raises:
            InputError: for a missing column of texts.
        """
        rows = self.explain(self.texts(batch))
        return {**batch, **{name: [row.get(name) for row in rows] for name in COLUMNS}}

    def explain(self, texts: Sequence[Any]) -> list[Row]:
        """A row of explanations for each text."""
        rows: list[Row] = [{"error": f"no text: {text!r:.60}"} for text in texts]
        self._fill(rows, texts, [i for i, text in enumerate(texts) if _is_text(text)])
        return rows

    def _fill(self, rows: list[Row], texts: Sequence[Text], which: list[int]) -> None:
        """Explain some rows as one batch; if that fails, each half of them separately."""
        if not which:
            return
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="text .* the rest was cut off")  # a note of the row says so
                result = self.xmodel.explain([texts[i] for i in which], target=self.target)
                explained = [self._row(result, n, texts[i]) for n, i in enumerate(which)]
        except Exception as error:  # an error of any library is stored in its row, and the run goes on
            if len(which) == 1:
                rows[which[0]] = {"error": type_and_line(error)}
                return
            middle = len(which) // 2
            self._fill(rows, texts, which[:middle])
            self._fill(rows, texts, which[middle:])
            return
        for i, row in zip(which, explained, strict=True):
            rows[i] = row

    def _row(self, result: Attribution, sample: int, text: Text) -> Row:
        name = result.token_inputs[0]
        tokens = result.tokens(name)[sample]
        positions = [i for i, padding in enumerate(tokens.padding) if not padding]
        relevance = {n: r[sample : sample + 1] for n, r in result.relevance.items()}
        value = result.target[sample : sample + 1]
        ledger = dict(result[sample].amounts()) if self.ledger else None
        notes = [note.name for note in find_notes(relevance, value, ledger)]
        limit = self.encoder.limit
        too_long = limit is not None and len(positions) >= limit and self.encoder.length(text) > limit
        answers = result.context.answers
        return {
            "tokens": [tokens.texts[i] for i in positions],
            "special": [tokens.special[i] for i in positions],
            "relevance": relevance[name][0, positions].float().cpu().numpy(),
            "target": float(value),
            "prediction": None if answers is None else answers[sample],
            "absorbed": float(value) - float(sum(r.double().sum() for r in relevance.values())),
            "ledger": ledger,
            "notes": [*notes, *(["cut off"] if too_long else [])],
            "error": None,
        }

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, without the loaded and converted model."""
        return {n: v for n, v in vars(self).items() if n not in ("_loaded", "xmodel", "encoder")}


def _is_text(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, str) for part in parts)
