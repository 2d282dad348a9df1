"""The folder of a run: Parquet shards, each written atomically, and a manifest with the settings of the run.

Shard n has the rows n * size to (n + 1) * size of the data set. An existing shard is complete and a missing one is
computed again, so a resumed run neither loses nor repeats a row.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.files import replacing, write_text
from lrp_fx.runs.rows import COLUMNS

MANIFEST = "_manifest.json"  #: readers of Parquet folders leave out names that begin with an underscore
_INPUT = "the text; the path of an image or a sound"
_LOCKS: Any = importlib.import_module("fcntl") if os.name == "posix" else None  #: elsewhere folders are not locked
PRECISIONS = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class Counts:
    """Counts of a shard or a run.

    Attributes:
        rows: number of rows.
        failures: number of rows with an error.
        padding: number of padding tokens in the model's inputs.
        tokens: number of all tokens in the model's inputs.
        errors: error of a row -> number of rows with it.
    """

    rows: int = 0
    failures: int = 0
    padding: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Folder:
    """The folder of a run.

    Attributes:
        path: its path.
        precision: precision of relevance: "float16" or "float32".
        inputs: names of the columns that are explained.
    """

    path: Path
    precision: str
    inputs: tuple[str, ...]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A lock against other runs in this folder; it ends with the process.

        Raises:
            InputError: if another run has the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                if _LOCKS is not None:
                    _LOCKS.flock(file, _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
            except OSError as error:
                raise InputError(f"another run writes to {self.path}: give each a folder of its own") from error
            for left_over in self.path.glob(".part-*.parquet"):  # a run was killed while writing
                left_over.unlink()
            yield

    def manifest(self) -> dict[str, Any]:
        """The manifest; empty before the first run."""
        file = self.path / MANIFEST
        return json.loads(file.read_text()) if file.is_file() else {}

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings to the manifest.

        Raises:
            InputError: if the folder has a run with other settings, or shards and no manifest.
        """
        earlier = self.manifest().get("settings")
        if earlier is None and any(self.path.glob("part-*.parquet")):
            raise InputError(
                f"{self.path} has shards, and no {MANIFEST} that says what of. Remedy: give another folder, or remove "
                "this one."
            )
        plain = json.loads(json.dumps(settings))
        if earlier is not None and earlier != plain:
            names = [n for n in plain if earlier.get(n) != plain[n]]
            raise InputError(
                f"{self.path} holds a run with another {', '.join(names) or 'version'}. Remedy: give another folder, "
                "or remove this one."
            )
        if earlier is None:
            columns = {"row": "number of the row in the data set", **dict.fromkeys(self.inputs, _INPUT), **COLUMNS}
            self._write({"settings": plain, "columns": columns, "finished": False})

    def finish(self, report: Mapping[str, Any]) -> None:
        """Mark the run as finished in the manifest, with its totals."""
        self._write({**self.manifest(), "finished": True, **report})

    def _write(self, document: Mapping[str, Any]) -> None:
        write_text(self.path / MANIFEST, json.dumps(document, indent=1) + "\n")

    def shard(self, number: int) -> Path:
        """Path of a shard."""
        return self.path / f"part-{number:05d}.parquet"

    def counts(self, number: int) -> Counts | None:
        """Counts of a shard; None for a missing one."""
        if not self.shard(number).is_file():
            return None
        parquet: Any = require("pyarrow.parquet", "data")
        counts = json.loads(parquet.read_schema(self.shard(number)).metadata[b"lrp_fx"])
        return Counts(**{**counts, "errors": Counter(counts["errors"])})

    def write(
        self,
        number: int,
        first: int,
        inputs: Sequence[Sequence[str | None]],
        rows: Sequence[Mapping[str, Any]],
        counts: Counts,
    ) -> None:
        """Write a shard.

        Args:
            number: number of the shard.
            first: index of its first row in the data set.
            inputs: for each row the text or path in every column of inputs; None without one.
            rows: explanations of its rows.
            counts: its counts.

        Raises:
            OSError: if it cannot be written; no part of it is left then.
        """
        arrow: Any = require("pyarrow", "data")
        parquet: Any = require("pyarrow.parquet", "data")
        columns: dict[str, Any] = {"row": arrow.array(range(first, first + len(rows)), arrow.int64())}
        for place, name in enumerate(self.inputs):
            columns[name] = arrow.array([values[place] for values in inputs], arrow.string())
        for name, kind in self._types(arrow).items():
            columns[name] = arrow.array([self._value(name, row.get(name)) for row in rows], kind)
        table = arrow.table(columns).replace_schema_metadata({"lrp_fx": json.dumps(vars(counts))})
        with replacing(self.shard(number)) as temporary:
            parquet.write_table(table, temporary, compression="zstd")

    def _value(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if name == "relevance":
            return np.asarray(value, dtype=PRECISIONS[self.precision])
        return list(value.items()) if name in ("ledger", "latents") else value

    def _types(self, arrow: Any) -> dict[str, Any]:
        number = arrow.float16() if self.precision == "float16" else arrow.float32()
        text, words, real = arrow.string(), arrow.list_(arrow.string()), arrow.float64()
        return {
            "tokens": words, "special": arrow.list_(arrow.bool_()), "words": arrow.list_(arrow.int32()),
            "relevance": arrow.list_(number), "shape": arrow.list_(arrow.int32()),
            "target": real, "prediction": text, "absorbed": real,
            "latents": arrow.map_(text, arrow.list_(arrow.float32())), "ledger": arrow.map_(text, real),
            "notes": words, "error": text,
        }  # fmt: skip
