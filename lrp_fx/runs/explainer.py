"""Rows of texts, images or sounds in, rows of explanations out: for runs, ``datasets.map`` and data loaders."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import InputEncoder, TextEncoder
from lrp_fx.errors import InputError, type_and_line
from lrp_fx.explain import Target
from lrp_fx.hub.folder import load_folder
from lrp_fx.module import ExplainableModule
from lrp_fx.runs.batching import batches
from lrp_fx.runs.columns import KINDS, size_of
from lrp_fx.runs.rows import COLUMNS, Row, explained_rows


@dataclass(frozen=True)
class Prepared:
    """A value of a column, read and measured.

    Attributes:
        raw: the raw input; texts are tokenized.
        length: number of tokens after truncation, or of microseconds of a sound.
        cut_off: whether the text is truncated.
        error: why the value cannot be read; None if it can.
    """

    raw: Any = field(repr=False)
    length: int = 0
    cut_off: bool = False
    error: str | None = None


class Explainer:
    """Explains batches of rows: a mapping of columns in, a dict of lists out (:data:`lrp_fx.runs.COLUMNS`).

    The error of a row is stored in its column "error"; the other rows are explained. For a model given by its folder,
    copies in other processes load the model there.

    Attributes:
        kind: "text", "image" or "sound".
        columns: names of the columns that are read: one, or two with pairs of texts.
        rules: the rule set.
        target: the target, as in ``explain``.
        at: tensors inside the model with relevance of their own, as in ``explain``.
        ledger: whether to compute a ledger for each row.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        labels: Any = None,
        rules: RuleSource = "default",
        target: Target = None,
        text: str | tuple[str, str] | None = None,
        image: str | None = None,
        sound: str | None = None,
        at: str | Iterable[str] = (),
        ledger: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Store the arguments; the model is loaded and converted at the first batch.

        Args:
            model: a module, a pipeline of transformers, or the folder of a saved Hugging Face model.
            tokenizer: the model's tokenizer; None for the one in the folder or the pipeline.
            image_processor: the model's image processor, as in :func:`lrp_fx.convert`.
            feature_extractor: the model's feature extractor for sound.
            labels: names of the classes, as in :func:`lrp_fx.convert`.
            rules: the rule set.
            target: the target of every row, as in ``explain``, but no tensor with one entry per row.
            text: column of texts ("text" if no other column is given), or a pair of columns.
            image: column of images, in place of texts: images, paths or bytes of files.
            sound: column of sounds, in place of texts: dicts with array and sampling rate, paths or bytes of wav files.
            at: names of tensors inside the model, or globs: their relevance by neuron or head is in column "latents".
            ledger: compute a ledger for each row, with one more forward and backward pass per row.
            dtype: precision of a model from a folder; None for the saved one.

        Raises:
            InputError: for a tensor of targets, and for columns of two kinds.
        """
        if isinstance(target, torch.Tensor) and target.dim():
            raise InputError("a tensor of targets fits one batch only: give one target for every row")
        columns = {"text": text, "image": image, "sound": sound}
        chosen = {kind: column for kind, column in columns.items() if column is not None} or {"text": "text"}
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} are two kinds of columns: a run explains one")
        ((self.kind, column),) = chosen.items()
        self.columns: tuple[str, ...] = (column,) if isinstance(column, str) else tuple(column)
        tools = {"tokenizer": tokenizer, "image_processor": image_processor, "feature_extractor": feature_extractor}
        self._source, self._labels, self._dtype = model, labels, dtype
        self._tools = {name: tool for name, tool in tools.items() if tool is not None}
        self.rules, self.target, self.ledger = rules, target, ledger
        self.at = (at,) if isinstance(at, str) else tuple(at)

    @functools.cached_property
    def xmodel(self) -> ExplainableModule:
        """The converted model.

        Raises:
            InputError: for a folder that cannot be read.
        """
        from_folder = isinstance(self._source, (str, Path))
        model, tools = load_folder(self._source, self._dtype) if from_folder else (self._source, {})
        return convert(model, labels=self._labels, rules=self.rules, **{**tools, **self._tools})

    @property
    def encoder(self) -> InputEncoder:
        """The encoder of the column's kind.

        Raises:
            InputError: without one.
        """
        encoder = self.xmodel.encoder
        encoders = {"text": ("texts", "tokenizer"), "image": ("images", "image_processor")}
        part, tool = encoders.get(self.kind, ("sounds", "feature_extractor"))
        if encoder is None or getattr(encoder, part) is None:
            raise InputError(f"{part} need their encoder: Explainer(model, {tool}=...)")
        return encoder

    @property
    def _texts(self) -> TextEncoder:
        assert self.encoder.texts is not None
        return self.encoder.texts

    def values(self, batch: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The values to explain of a batch of columns, one per row, pairs as tuples.

        Raises:
            InputError: for a missing column.
        """
        if missing := [name for name in self.columns if name not in batch]:
            raise InputError(f"no column {missing[0]!r}: there are {', '.join(map(str, batch))}")
        columns = [list(batch[name]) for name in self.columns]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def prepare(self, values: Sequence[Any]) -> list[Prepared]:
        """Read and measure values of the column; the error of a value that cannot be read is kept."""
        prepared = [value if isinstance(value, Prepared) else self._read(value) for value in values]
        if self.kind != "text":
            return prepared
        readable = [i for i, one in enumerate(prepared) if one.error is None and not one.length]
        try:
            tokenized = self._texts.tokenized([prepared[i].raw for i in readable])
        except Exception:  # one of the texts fails: which one, shows in `explain`
            return prepared
        for i, text in zip(readable, tokenized, strict=True):
            limit = self._texts.limit or len(text)
            prepared[i] = Prepared(text, min(len(text), limit), len(text) > limit)
        return prepared

    def _read(self, value: Any) -> Prepared:
        try:
            raw = KINDS[self.kind].read(value)
            return Prepared(raw, 0 if self.kind == "text" else size_of(self.kind, raw))
        except Exception as error:  # of any library that reads files
            return Prepared(None, error=type_and_line(error))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """The columns of a batch, and :data:`lrp_fx.runs.COLUMNS`; one of the same name is replaced.

        Raises:
            InputError: for a missing column.
        """
        rows = self.explain(self.values(batch))
        return {**batch, **{name: [row.get(name) for row in rows] for name in COLUMNS}}

    def explain(self, values: Sequence[Any]) -> list[Row]:
        """A row of explanations for each value of the column, which may be prepared."""
        _ = self.encoder
        prepared = self.prepare(values)
        rows: list[Row] = [{"error": one.error} for one in prepared]
        readable = [i for i, one in enumerate(prepared) if one.error is None]
        for batch in batches([prepared[i].length for i in readable], KINDS[self.kind].limits):
            self._fill(rows, prepared, [readable[i] for i in batch])
        return rows

    def _fill(self, rows: list[Row], prepared: Sequence[Prepared], which: list[int]) -> None:
        """Explain some rows as one batch; if that fails, each half of them separately."""
        try:
            explained = self._explained([prepared[i] for i in which])
        except Exception as error:  # an error of any library is stored in its row, and the run goes on
            if len(which) == 1:
                rows[which[0]] = {"error": type_and_line(error)}
                return
            middle = len(which) // 2
            self._fill(rows, prepared, which[:middle])
            self._fill(rows, prepared, which[middle:])
            return
        for i, row in zip(which, explained, strict=True):
            rows[i] = row

    def _explained(self, batch: Sequence[Prepared]) -> list[Row]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* the rest was cut off")  # a note of the row says so
            result = self.xmodel.explain([one.raw for one in batch], target=self.target, at=self.at)
        # sounds of a batch have one length: all of them are cut off, or none
        cut = self.kind == "sound" and any(note.name == "cut off" for note in result.context.notes)
        return explained_rows(result, self.ledger, [one.cut_off or cut for one in batch])

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, without the converted model."""
        return {n: v for n, v in vars(self).items() if n != "xmodel"}
