"""The folder of a run (:func:`lrp_fx.run`), read for views of a whole data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lrp_fx.errors import InputError, LatentError
from lrp_fx.extras import require
from lrp_fx.results.words import word_of


@dataclass(frozen=True)
class ExplainedRun:
    """The rows of a run that were explained; rows with an error are left out.

    Attributes:
        path: its folder.
        kind: "text", "image" or "sound".
        input: name of the (first) column that was explained.
        rules: name of the rule set.
    """

    path: Path
    kind: str
    input: str
    rules: str

    @classmethod
    def open(cls, run: str | Path | ExplainedRun) -> ExplainedRun:
        """The run in a folder.

        Raises:
            InputError: for a folder without a run.
        """
        if isinstance(run, ExplainedRun):
            return run
        manifest = Path(run) / "_manifest.json"
        if not manifest.is_file():
            raise InputError(f"no run in {run}: write one with lrp_fx.run(model, data, out=...)")
        settings = json.loads(manifest.read_text())["settings"]
        return cls(Path(run), settings["kind"], settings["columns"][0], settings["rules"])

    @cached_property
    def numbers(self) -> np.ndarray:
        """(N,) numbers of the rows in the data set."""
        return np.array(list(self.column("row")), dtype=np.int64)

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) name of the target of each row; "" without one."""
        return np.array([name or "" for name in self.column("prediction")], dtype=object)

    @cached_property
    def inputs(self) -> list[str | None]:
        """The text of each row, or the path of its file."""
        return list(self.column(self.input))

    @cached_property
    def latents(self) -> dict[str, np.ndarray]:
        """Name of a tensor inside the model -> (N, F) relevance of its neurons or heads, summed over positions."""
        listed: dict[str, list[Any]] = {}
        for pairs in self.column("latents"):
            for name, values in pairs or ():
                listed.setdefault(name, []).append(values)
        return {name: np.array(values, dtype=np.float64) for name, values in listed.items()}

    def latent(self, name: str | None) -> np.ndarray:
        """(N, F) relevance in a tensor inside the model; None for the only one.

        Raises:
            LatentError: for a tensor that the run has no relevance of.
        """
        if name is None and len(self.latents) == 1:
            return next(iter(self.latents.values()))
        if name not in self.latents:
            names = ", ".join(self.latents) or "none: give Explainer(at=...) for some"
            raise LatentError(f"{name!r} is no tensor with relevance in {self.path}: there are {names}")
        return self.latents[name]

    def maps(self) -> Iterator[np.ndarray]:
        """The relevance of each row, in its shape."""
        for values, shape in zip(self.column("relevance"), self.column("shape"), strict=True):
            yield np.asarray(values, dtype=np.float32).reshape(shape)

    def words(self) -> Iterator[list[tuple[str, float]]]:
        """(word, relevance) of the words of each text, without special tokens.

        Raises:
            InputError: for a run of images or sounds.
        """
        if self.kind != "text":
            raise InputError(f"a run of {self.kind}s has no words")
        columns = (self.column(name) for name in ("tokens", "special", "words", "relevance"))
        for tokens, special, words, relevance in zip(*columns, strict=True):
            merged: dict[int, list[tuple[str, float]]] = {}
            for token, is_special, word, amount in zip(tokens, special, words, relevance, strict=True):
                if not is_special:
                    merged.setdefault(word, []).append((token, float(amount)))
            summed = [(word_of([t for t, _ in pieces]), sum(a for _, a in pieces)) for pieces in merged.values()]
            yield [(text, amount) for text, amount in summed if text.strip()]

    def column(self, name: str) -> Iterator[Any]:
        """The values of a column; lists of numbers as arrays.

        Raises:
            MissingExtraError: when pyarrow is not installed.
        """
        compute: Any = require("pyarrow.compute", "data")
        parquet: Any = require("pyarrow.parquet", "data")
        for path in sorted(self.path.glob("part-*.parquet")):
            table = parquet.read_table(path, columns=list({name, "error"}))
            values = table.filter(compute.is_null(table["error"]))[name]
            if name != "relevance":
                yield from values.to_pylist()
                continue
            for chunk in values.chunks:
                yield from (scalar.values.to_numpy(zero_copy_only=False) for scalar in chunk)
