"""Rows of a data set, read one by one from files of several formats or from an iterable."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.extras import require

#: column -> value; for a row that cannot be read, :data:`BROKEN` -> the reason
Values = Mapping[str, Any]
BROKEN = "\0error"


def _lines(path: Path) -> Iterator[Values]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield {"text": line.rstrip("\r\n")}


def _separated(path: Path, delimiter: str) -> Iterator[Values]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            extra = row.pop(None, None)  # type: ignore[call-overload]
            yield row if extra is None else {BROKEN: f"{len(extra)} fields more than columns"}


def _json_lines(path: Path) -> Iterator[Values]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield {BROKEN: f"no JSON: {error}"}
                continue
            yield row if isinstance(row, dict) else {"text": row}


def _parquet(path: Path) -> Iterator[Values]:
    parquet: Any = require("pyarrow.parquet", "data")
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[Values]:
    """An Arrow stream, as in a Hugging Face data set saved to disk."""
    pyarrow: Any = require("pyarrow", "data")
    ipc: Any = require("pyarrow.ipc", "data")
    with pyarrow.memory_map(str(path)) as file:
        for batch in ipc.open_stream(file):
            yield from batch.to_pylist()


READERS: Mapping[str, Callable[[Path], Iterator[Values]]] = {
    ".txt": _lines,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or the readable files in a folder and its subfolders, sorted by path.

    Raises:
        InputError: if there is none.
    """
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in READERS) if path.is_dir() else [path]
    if not files or not files[0].is_file() or files[0].suffix not in READERS:
        raise InputError(f"no data at {path}: give a file {', '.join(READERS)}, or a folder of such files")
    return files


def read_rows(data: str | Path | Iterable[Any]) -> Iterator[Values]:
    """The rows of a file, of all files in a folder, or of an iterable of texts or rows.

    Raises:
        InputError: for a path without data.
        MissingExtraError: for Parquet and Arrow without pyarrow.
    """
    if isinstance(data, (str, Path)):
        for path in files_of(data):
            yield from READERS[path.suffix](path)
        return
    table: Any = data
    rows = table.to_dict("records") if hasattr(table, "to_dict") and hasattr(table, "columns") else table
    for row in rows:
        yield row if isinstance(row, Mapping) else {"text": row}


def described(data: Any) -> Any:
    """Identity of a data set: names, sizes and modification times of its files; None for an iterable."""
    if not isinstance(data, (str, Path)):
        return None
    return [[str(path), (status := path.stat()).st_size, status.st_mtime_ns] for path in files_of(data)]
