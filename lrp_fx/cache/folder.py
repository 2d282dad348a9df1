"""The cache folder, named by ``LRP_FX_CACHE``: files of plain data and tensors, with a limit on their total size.

Without the variable nothing is written or read. ``LRP_FX_CACHE_LIMIT`` (``500MB``, ``4GB``, or a number of bytes) is
the limit; after a write, the least recently used files are removed until the others fit. Other files in the folder are
neither counted nor touched. Processes may share the folder: files appear whole, and may be removed at any time.

Write access to the folder is control over explanations. A folder of another user, or one that others may write to, is
not used, with a warning. Folders of root are trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp_fx.files import writing

VARIABLE, LIMIT = "LRP_FX_CACHE", "LRP_FX_CACHE_LIMIT"

_FORMAT = 1
_DEFAULT_LIMIT = 4 * 1000**3
_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
#: names of cache files, also temporary ones of this and of earlier versions
_NAME = re.compile(r"\.?[0-9a-f]{32}\.[0-9a-f]{12}(\.[0-9a-f]{12})?\.pt(\.\w+\.tmp)?")


@dataclass(frozen=True)
class CacheFile:
    """The contents of one cache file.

    Attributes:
        path: the file.
        document: its plain data.
        tensors: its tensors.
    """

    path: Path
    document: Any
    tensors: dict[str, Tensor]

    def touch(self) -> None:
        """Mark the file as recently used."""
        with contextlib.suppress(OSError):  # removed by another process, or read-only
            os.utime(self.path)


@dataclass(frozen=True)
class Entry:
    """A cache entry: the files for one model and kind of call, one file per set of sizes.

    Attributes:
        folder: the cache folder.
        key: fingerprint of the model and the call.
    """

    folder: Path
    key: str

    def files(self) -> Iterator[CacheFile]:
        """Every readable file of this entry; others are skipped."""
        for path in sorted(self.folder.glob(f"{self.key}.*.pt")):
            try:
                if (reason := _open_to_others(path)) is not None:
                    warnings.warn(f"{VARIABLE}: {str(path)!r} is not read: {reason}", stacklevel=2)
                    continue
                stored = torch.load(path, weights_only=True)
                if stored["format"] == _FORMAT and all(type(t) is Tensor for t in stored["tensors"].values()):
                    yield CacheFile(path, json.loads(stored["document"]), stored["tensors"])
            except Exception:  # damaged or foreign files count as cache misses
                continue

    def write(self, document: Any, tensors: Mapping[str, Tensor], variant: Any) -> None:
        """Write one file atomically; a failure is a warning. Then enforce the size limit of the folder."""
        name = f"{self.key}.{digest(variant)[:12]}.pt"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with writing(self.folder / name, mode=0o600) as file:
                torch.save({"format": _FORMAT, "document": json.dumps(document), "tensors": dict(tensors)}, file)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"{VARIABLE}: nothing is kept in {str(self.folder)!r}: {error}", stacklevel=2)
        else:
            make_room(self.folder, limit())


def folder() -> Path | None:
    """The cache folder; None if none is named, or, with a warning, if others can write to it."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    place = Path(named).expanduser()
    if (reason := _open_to_others(place)) is None:
        return place
    warnings.warn(
        f"{VARIABLE}: {str(place)!r} is not used: {reason}, and files in it determine explanations. Remedy: name a "
        "folder of your own that only you can write to (chmod go-w).",
        stacklevel=2,
    )
    return None


def _open_to_others(path: Path) -> str | None:
    """Why others than this user (and root) can write to a file or folder; None if they cannot, or it does not exist."""
    if not hasattr(os, "getuid"):  # a system without owners and modes
        return None
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    if state.st_uid not in (0, os.getuid()):
        return f"it belongs to another user ({state.st_uid})"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(state.st_mode):o})"
    return None


def digest(*values: Any) -> str:
    """A hexadecimal digest of the ``repr`` of values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def limit() -> int:
    """The limit on the total size of all files in bytes; an invalid value is a warning, and the default counts."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return _DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.upper())
    if match is None:
        warnings.warn(
            f"{LIMIT}={text!r} is no size (500MB, 4GB, a number of bytes): the limit is {_DEFAULT_LIMIT // 1000**3}GB",
            stacklevel=2,
        )
        return _DEFAULT_LIMIT
    return int(float(match[1]) * _UNITS[match[2] or ""])


def make_room(place: Path, most: int) -> None:
    """Remove the least recently used cache files until the others have ``most`` bytes or less."""
    files: list[tuple[int, int, str]] = []
    with contextlib.suppress(OSError):  # another process may have removed the folder or a file
        files += (_state(file) for file in os.scandir(place) if _NAME.fullmatch(file.name))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)
            total -= size


def _state(file: os.DirEntry[str]) -> tuple[int, int, str]:
    """(time of last use, size, path) of a file."""
    state = file.stat()
    return state.st_mtime_ns, state.st_size, file.path
