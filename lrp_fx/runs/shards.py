"""The folder of a run: Parquet shards, each written whole or not at all, and a manifest that says what they are of.

Shard n holds rows n * size to (n + 1) * size of the data set, so a shard that is there is done, and one that is not
is made anew: a run that was killed goes on without a lost or doubled row.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.files import replacing, write_text
from lrp_fx.runs.explainer import COLUMNS

MANIFEST = "manifest.json"
_LOCKS: Any = importlib.import_module("fcntl") if os.name == "posix" else None  #: elsewhere folders are not locked
PRECISIONS = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class Counts:
    """What a shard, or a run, holds.

    Attributes:
        rows: rows.
        failures: those with an error.
        padding: tokens of padding that the model read.
        tokens: all tokens that it read.
    """

    rows: int = 0
    failures: int = 0
    padding: int = 0
    tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Folder:
    """The folder of a run.

    Attributes:
        path: where it is.
        precision: of relevance: "float16" or "float32".
        texts: names of the columns of texts.
    """

    path: Path
    precision: str
    texts: tuple[str, ...]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other run writes here; a run that was killed holds nothing.

        Raises:
            InputError: where another run is at work.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                if _LOCKS is not None:
                    _LOCKS.flock(file, _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
            except OSError as error:
                raise InputError(f"another run writes to {self.path}: give each a folder of its own") from error
            for left_over in self.path.glob(".part-*.parquet"):  # of a run that was killed while it wrote
                left_over.unlink()
            yield

    def manifest(self) -> dict[str, Any]:
        """What the folder is of; empty before the first run."""
        file = self.path / MANIFEST
        return json.loads(file.read_text()) if file.is_file() else {}

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note what the shards will be of.

        Raises:
            InputError: where there are shards of something else.
        """
        there = self.manifest().get("settings")
        plain = json.loads(json.dumps(settings))
        if there is not None and there != plain:
            names = [n for n in plain if there.get(n) != plain[n]]
            raise InputError(
                f"{self.path} holds a run with another {', '.join(names) or 'version'}. Remedy: give another folder, "
                "or remove this one."
            )
        if there is None:
            columns = {"row": "number of the row in the data set", **dict.fromkeys(self.texts, "the text"), **COLUMNS}
            self._write({"settings": plain, "columns": columns, "finished": False})

    def finish(self, report: Mapping[str, Any]) -> None:
        """Note that all shards are there."""
        self._write({**self.manifest(), "finished": True, **report})

    def _write(self, document: Mapping[str, Any]) -> None:
        write_text(self.path / MANIFEST, json.dumps(document, indent=1) + "\n")

    def shard(self, number: int) -> Path:
        """Where a shard is."""
        return self.path / f"part-{number:05d}.parquet"

    def counts(self, number: int) -> Counts | None:
        """What a shard holds; None where it is not there."""
        if not self.shard(number).is_file():
            return None
        parquet: Any = require("pyarrow.parquet", "data")
        return Counts(**json.loads(parquet.read_schema(self.shard(number)).metadata[b"lrp_fx"]))

    def write(
        self, number: int, first: int, texts: Sequence[Any], rows: Sequence[Mapping[str, Any]], counts: Counts
    ) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            first: number of its first row in the data set.
            texts: of its rows.
            rows: explanations.
            counts: what it holds.

        Raises:
            OSError: where it cannot be written; nothing is there then.
        """
        arrow: Any = require("pyarrow", "data")
        parquet: Any = require("pyarrow.parquet", "data")
        columns: dict[str, Any] = {"row": arrow.array(range(first, first + len(rows)), arrow.int64())}
        for place, name in enumerate(self.texts):
            column = [text if len(self.texts) == 1 else text[place] for text in texts]
            columns[name] = arrow.array([t if isinstance(t, str) else None for t in column], arrow.string())
        for name, kind in self._types(arrow).items():
            columns[name] = arrow.array([self._value(name, row.get(name)) for row in rows], kind)
        table = arrow.table(columns).replace_schema_metadata({"lrp_fx": json.dumps(vars(counts))})
        with replacing(self.shard(number)) as beside:
            parquet.write_table(table, beside, compression="zstd")

    def _value(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if name == "relevance":
            return np.asarray(value, dtype=PRECISIONS[self.precision])
        return list(value.items()) if name == "ledger" else value

    def _types(self, arrow: Any) -> dict[str, Any]:
        number = arrow.float16() if self.precision == "float16" else arrow.float32()
        return {
            "tokens": arrow.list_(arrow.string()), "special": arrow.list_(arrow.bool_()),
            "relevance": arrow.list_(number), "target": arrow.float64(), "prediction": arrow.string(),
            "absorbed": arrow.float64(), "ledger": arrow.map_(arrow.string(), arrow.float64()),
            "notes": arrow.list_(arrow.string()), "error": arrow.string(),
        }  # fmt: skip
