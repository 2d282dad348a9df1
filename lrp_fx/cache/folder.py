"""The folder that ``LRP_FX_CACHE`` names: files of plain data and tensors, and how large they may get together.

Without the variable nothing is written or read. ``LRP_FX_CACHE_LIMIT`` (``500MB``, ``4GB``, or a number of bytes) is
how much all files may hold; after a write, those that were not used for longest go until they fit. Other files in the
folder are neither counted nor touched. Processes may share it: a file is whole or not there, and one that another
process has just removed is one that is not there.

Who can write to the folder can choose what is explained: one that belongs to another user, or that others may write to,
is not used, and a warning says so. The administrator's (root's) is as good as one's own.
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
#: ours, also while one is being written, and as earlier versions named that
_NAME = re.compile(r"\.?[0-9a-f]{32}\.[0-9a-f]{12}(\.[0-9a-f]{12})?\.pt(\.\w+\.tmp)?")


@dataclass(frozen=True)
class Kept:
    """One file that was read.

    Attributes:
        path: where it is.
        document: its plain data.
        tensors: its tensors.
    """

    path: Path
    document: Any
    tensors: dict[str, Tensor]

    def touch(self) -> None:
        """Note that it was of use: what is used stays."""
        with contextlib.suppress(OSError):  # removed by another process, or not ours to write to
            os.utime(self.path)


@dataclass(frozen=True)
class Entry:
    """Where what was made of one model and kind of call is kept: one file per set of sizes.

    Attributes:
        folder: the user's cache.
        key: fingerprint of all that it depends on.
    """

    folder: Path
    key: str

    def files(self) -> Iterator[Kept]:
        """Every readable file of this entry. What cannot be read is passed over."""
        for path in sorted(self.folder.glob(f"{self.key}.*.pt")):
            try:
                if (reason := _open_to_others(path)) is not None:
                    warnings.warn(f"{VARIABLE}: {str(path)!r} is not read: {reason}", stacklevel=2)
                    continue
                stored = torch.load(path, weights_only=True)
                if stored["format"] == _FORMAT and all(type(t) is Tensor for t in stored["tensors"].values()):
                    yield Kept(path, json.loads(stored["document"]), stored["tensors"])
            except Exception:  # damaged or foreign in one of many ways: it is a cache, so it is as if it were not there
                continue

    def write(self, document: Any, tensors: Mapping[str, Tensor], variant: Any) -> None:
        """Write one file, whole or not at all; a folder that cannot be written to is a warning."""
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
    """The user's cache; None where there is none, and for one that others can write to, with a warning."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    place = Path(named).expanduser()
    if (reason := _open_to_others(place)) is None:
        return place
    warnings.warn(
        f"{VARIABLE}: {str(place)!r} is not used: {reason}, and who writes there chooses what is explained. Remedy: "
        "name a folder of your own that only you can write to (chmod go-w).",
        stacklevel=2,
    )
    return None


def _open_to_others(path: Path) -> str | None:
    """None where only this user (and root) can write to a file or folder, or where there is none yet; else why not."""
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


def digest(*parts: Any) -> str:
    """A hexadecimal number for what values look like."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def limit() -> int:
    """How many bytes all files may hold; a value that is no size is a warning."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return _DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.upper())
    if match is None:
        warnings.warn(
            f"{LIMIT}={text!r} is no size (500MB, 4GB, a number of bytes): it is {_DEFAULT_LIMIT // 1000**3}GB",
            stacklevel=2,
        )
        return _DEFAULT_LIMIT
    return int(float(match[1]) * _UNITS[match[2] or ""])


def make_room(place: Path, most: int) -> None:
    """Remove our files, those that were not used for longest first, until the others hold ``most`` bytes or less."""
    files: list[tuple[int, int, str]] = []
    with contextlib.suppress(OSError):  # the folder may be gone, or a file of it: another process was here
        files += (_state(file) for file in os.scandir(place) if _NAME.fullmatch(file.name))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)
            total -= size


def _state(file: os.DirEntry[str]) -> tuple[int, int, str]:
    """When a file was last used, its size and its path."""
    state = file.stat()
    return state.st_mtime_ns, state.st_size, file.path
