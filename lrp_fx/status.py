"""Progress of conversions: a status line on terminals, and log records.

A conversion that takes more than :data:`PATIENCE` seconds shows its stage and how many operators it has traced, on
standard error and only if that is a terminal. ``LRP_FX_STATUS=0`` switches the line off. The loggers
``lrp_fx.captures`` (level INFO: every capture, why it was made, and its seconds) and ``lrp_fx.stages`` (level DEBUG:
seconds of every stage) work as all loggers do; ``LRP_FX_LOGS=captures,stages`` writes them to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

PATIENCE = 2.0  #: seconds after which the line appears
LINE, LOGS = "LRP_FX_STATUS", "LRP_FX_LOGS"

LOGGERS = {"captures": logging.INFO, "stages": logging.DEBUG}  #: what LRP_FX_LOGS can name -> level of its records
_stages = logging.getLogger("lrp_fx.stages")


class Conversion:
    """One conversion in progress.

    Args:
        name: name of the model's class.

    Attributes:
        stage: the current stage.
        count: operators traced so far in this stage.
    """

    def __init__(self, name: str) -> None:
        self.name, self.stage, self.count = name, "", 0
        self.start = self.begun = time.monotonic()
        self._stream = sys.stderr  # export redirects it
        self._line: Live | None = None
        self._over = False
        self._lock = threading.Lock()

    def __rich__(self) -> Text:
        counted = f", {self.count} operators" if self.count else ""
        seconds = time.monotonic() - self.start
        return Text(f"lrp_fx converts {self.name}: {self.stage}{counted}, {seconds:.0f} s")

    def begin(self, stage: str) -> None:
        """Enter a stage; the one before is over."""
        now = time.monotonic()
        if self.stage:
            _stages.debug("%s: %s took %.2f s", self.name, self.stage, now - self.begun)
        self.stage, self.count, self.begun = stage, 0, now

    def show(self) -> None:
        """Show the line from now on."""
        with self._lock:
            if not self._over:
                self._line = Live(
                    Spinner("dots", text=self), console=Console(file=self._stream), refresh_per_second=4,
                    transient=True, redirect_stdout=False, redirect_stderr=False,
                )  # fmt: skip
                self._line.start()

    def end(self) -> None:
        """Remove the line."""
        with self._lock:
            self._over = True
            if self._line is not None:
                self._line.stop()
        self.begin("")


_CURRENT: ContextVar[Conversion | None] = ContextVar("conversion", default=None)


@contextlib.contextmanager
def converting(name: str) -> Iterator[None]:
    """Show the block as a conversion; inside of another conversion, as a part of it."""
    if _CURRENT.get() is not None:
        yield
        return
    conversion = Conversion(name)
    token = _CURRENT.set(conversion)
    timer = threading.Timer(PATIENCE, conversion.show) if _shown() else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        _CURRENT.reset(token)
        if timer is not None:
            timer.cancel()
        conversion.end()


def stage(name: str) -> None:
    """Enter a stage of the current conversion, if there is one."""
    if (conversion := _CURRENT.get()) is not None:
        conversion.begin(name)


def traced(count: int) -> None:
    """Set the number of traced operators of the current conversion, if there is one."""
    if (conversion := _CURRENT.get()) is not None:
        conversion.count = count


def _shown() -> bool:
    return os.environ.get(LINE, "") != "0" and sys.stderr.isatty()


def log_to_stderr(names: str) -> None:
    """Write the records of the named loggers to standard error.

    Args:
        names: of :data:`LOGGERS`, separated by commas.

    Raises:
        ValueError: for another name.
    """
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in LOGGERS:
            raise ValueError(f"{LOGS}={names}: {name!r} is none of {', '.join(LOGGERS)}")
        logger = logging.getLogger(f"lrp_fx.{name}")
        logger.setLevel(LOGGERS[name])
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
        logger.addHandler(handler)


log_to_stderr(os.environ.get(LOGS, ""))
