"""Texts that are read, and atomic writes: a file is written under a temporary name in the same folder, then renamed.

A full disk or a read-only folder raises ``OSError``, and an earlier file of that name stays as it was.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lrp_fx.errors import InputError, RuleSetError


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        InputError: for a file in another encoding.
        OSError: if it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise InputError(f"{str(path)!r} is no text in UTF-8 ({reason.reason}, byte {reason.start})") from reason


def read_toml(path: str | Path) -> dict[str, Any]:
    """The document of a TOML file.

    Raises:
        RuleSetError: for a file that is none.
        OSError: if it cannot be read.
    """
    try:
        return tomllib.loads(read_text(path))
    except ValueError as reason:
        raise RuleSetError(f"{str(path)!r} is no TOML file: {reason}") from reason


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary file name; the file replaces ``path`` when the block ends, or is removed on an error.

    The temporary file has the folder and the suffix of ``path``. Symbolic links are followed. A device or a pipe is
    written directly.

    Args:
        path: the file to write.
        mode: permissions of a new file, before the process's umask; a replaced file keeps its permissions.

    Raises:
        OSError: if the file cannot be written.
    """
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder")
    if place.exists() and not place.is_file():
        yield place
        return
    beside = place.with_name(f".{place.stem[:80]}.{secrets.token_hex(6)}{place.suffix}")
    try:
        file = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except OSError as reason:  # (which names the temporary file)
        raise type(reason)(f"{str(path)!r} cannot be written: {reason.strerror}") from reason
    try:
        try:
            yield beside
            _to_disk(beside)
            if place.exists():
                os.chmod(beside, place.stat().st_mode & 0o7777)
        finally:
            os.close(file)
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    """Flush a file to the disk (fsync): some file systems report a full disk only here."""
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def writing(path: str | Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes ``path`` when the block ends, for writers that crash on a failed write.

    PyTorch's archive writer finishes its archive in a destructor; an error raised there ends the process. Therefore
    writes to this file never raise. The first error is raised when the block ends.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path, mode) as beside:
        stream = _Lasting(beside)
        try:
            yield stream  # type: ignore[misc]  # it has the methods that writers call
        finally:
            stream.close()
        if stream.failure is not None:
            raise stream.failure


class _Lasting(io.BufferedIOBase):
    """A file whose writes never raise: ``failure`` is the first error."""

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._tried(self._file.write, data)
        return memoryview(data).nbytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._tried(self._file.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._tried(self._file.tell) or 0

    def flush(self) -> None:
        if not self._file.closed:
            self._tried(self._file.flush)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as reason:
            self.failure = self.failure or reason
        super().close()

    def _tried(self, act: Any, *args: Any) -> Any:
        if self.failure is None:
            try:
                return act(*args)
            except OSError as reason:
                self.failure = reason
        return None


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file (UTF-8), and return its path.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)
