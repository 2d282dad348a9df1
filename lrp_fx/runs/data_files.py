"""Rows of a data set, read one by one from files of several formats or from an iterable."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.runs.columns import KINDS

#: column -> value; for a row that cannot be read, :data:`BROKEN` -> the reason
Values = Mapping[str, Any]
BROKEN = "\0error"


#: UTF-8, with or without a byte order mark; bytes of another encoding become what :data:`_UNDECODED` finds
_TEXT: Mapping[str, str] = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
_UNDECODED = re.compile("[\udc80-\udcff]")


def _decoded(row: Values) -> Values:
    """The row, broken if there are bytes in it that are no UTF-8."""
    undecoded = any(isinstance(value, str) and _UNDECODED.search(value) for value in row.values())
    return {BROKEN: "no text in UTF-8"} if undecoded else row


def _lines(path: Path) -> Iterator[Values]:
    with path.open(**_TEXT) as file:  # type: ignore[call-overload]
        for line in file:
            yield _decoded({"text": line.rstrip("\r\n")})


def _separated(path: Path, delimiter: str) -> Iterator[Values]:
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", **_TEXT) as file:  # type: ignore[call-overload]
        for row in csv.DictReader(file, delimiter=delimiter):
            extra = row.pop(None, None)  # type: ignore[call-overload]
            yield _decoded(row) if extra is None else {BROKEN: f"{len(extra)} fields more than columns"}


def _json_lines(path: Path) -> Iterator[Values]:
    with path.open(**_TEXT) as file:  # type: ignore[call-overload]
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield {BROKEN: f"no JSON: {error}"}
                continue
            yield _decoded(row if isinstance(row, dict) else {"text": row})


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
#: suffix -> kind of the only value in such a file
_SINGLE = {suffix: name for name, kind in KINDS.items() for suffix in kind.suffixes}
_LISTED = 20  #: most files that a manifest lists one by one


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or the readable files in a folder and its subfolders, sorted by path.

    Of a folder of images or sounds, tables (which describe them) are left out.

    Raises:
        InputError: if there is none.
    """
    path = Path(path)
    listed = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    files = [p for p in listed if _suffix(p) in _SINGLE] or [p for p in listed if _suffix(p) in READERS]
    if not files:
        kinds = ", ".join([*READERS, *_SINGLE])
        raise InputError(f"no data at {path}: give a file {kinds}, or a folder of such files")
    return files


def kind_of_data(data: Any) -> str:
    """The kind of column in a data set: "image" or "sound" for files of such, otherwise "text".

    Raises:
        InputError: for a path without data.
    """
    return _SINGLE.get(_suffix(files_of(data)[0]), "text") if isinstance(data, (str, Path)) else "text"


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def read_rows(data: str | Path | Iterable[Any], column: str = "text") -> Iterator[Values]:
    """The rows of a file, of all files in a folder, or of an iterable of values or rows.

    A file of an image or sound is a row with its path in the column "image" or "sound"; values of an iterable are in
    ``column``.

    Raises:
        InputError: for a path without data, and for what is neither a path nor iterable.
        MissingExtraError: for Parquet and Arrow without pyarrow.
    """
    if isinstance(data, (str, Path)):
        for path in files_of(data):
            kind = _SINGLE.get(_suffix(path))
            yield from READERS[_suffix(path)](path) if kind is None else [{kind: str(path)}]
        return
    table: Any = data
    rows = table.to_dict("records") if hasattr(table, "to_dict") and hasattr(table, "columns") else table
    if not isinstance(rows, Iterable) and not hasattr(rows, "__getitem__"):
        raise InputError(f"no data: {rows!r:.60}. Remedy: give a path, a data frame, or an iterable of values or rows")
    for row in rows:
        is_row = isinstance(row, Mapping) and not ("sampling_rate" in row and {"array", "raw"} & row.keys())
        yield row if is_row else {column: row}


def described(data: Any) -> Any:
    """Identity of a data set: names, sizes and modification times of its files; None for an iterable."""
    if not isinstance(data, (str, Path)):
        return None
    listed = [[str(path), (status := path.stat()).st_size, status.st_mtime_ns] for path in files_of(data)]
    if len(listed) <= _LISTED:
        return listed
    return {"files": len(listed), "digest": hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]}
