"""A progress bar for long computations only."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import rich.progress
from rich.console import Console

PATIENCE = 5.0  #: remaining seconds from which on the bar appears


class Progress:
    """Counts sweeps; shows a bar on standard error when more than :data:`PATIENCE` seconds remain.

    Args:
        total: number of sweeps.
        shown: whether a bar may appear; None: if standard error is a terminal.
    """

    def __init__(self, total: int, shown: bool | None) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.allowed = sys.stderr.isatty() if shown is None else shown
        self.bar: rich.progress.Progress | None = None

    def advance(self, count: int) -> None:
        """Count ``count`` further sweeps."""
        self.done += count
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        if self.bar is None and self.allowed and left > PATIENCE:
            self.bar = rich.progress.Progress(console=Console(stderr=True), transient=True)
            self.bar.add_task("sweeps", total=self.total)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
