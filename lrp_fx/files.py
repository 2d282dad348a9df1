"""Files are written whole or not at all: beside their place first, then moved there in one step.

A disk that is full, or a folder that cannot be written to, is an ``OSError``, and what was there before stays.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o666) -> Iterator[Path]:
    """The name of a file to write, which takes the place of ``path`` when the block ends; on an error it is removed.

    It is in the same folder and has the same suffix. A link is followed; a device or a pipe is written to itself.

    Args:
        mode: who may read and write a new file, less what the process's mask takes away; a file that is replaced hands
            its own mode on.

    Raises:
        OSError: where nothing can be written.
    """
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder")
    if place.exists() and not place.is_file():
        yield place
        return
    beside = place.with_name(f".{place.stem[:80]}.{secrets.token_hex(6)}{place.suffix}")
    file = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
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
    """Wait until the disk has a file; some say only then that they are full."""
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def writing(path: str | Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends, for writers that end the process where one fails.

    PyTorch's archive writer finishes its archive while an error unwinds it, and a second error there is the end of the
    process. So writes to this file never fail; the first reason why one could not be done is raised at the end.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path, mode) as beside:
        stream = _Lasting(beside)
        try:
            yield stream  # type: ignore[misc]  # all of a binary file that writers use
        finally:
            stream.close()
        if stream.failure is not None:
            raise stream.failure


class _Lasting(io.BufferedIOBase):
    """A file whose writes do not fail: it keeps the first reason why one could not be done."""

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
