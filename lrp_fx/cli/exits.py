"""Exit codes of the command line; docs/cli.md has the same table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.markup import escape

from lrp_fx.errors import LrpError, MissingExtraError

#: exit code -> its meaning
EXITS: dict[int, str] = {
    0: "done",
    1: "an error: one message on standard error says what it was and what to do",
    2: "the command line was not understood",
    3: "a check ran and found a fault (`verify`)",
    4: "a package is missing: the message has the command that installs it",
    130: "interrupted (Ctrl-C): no file is half written, and `run` goes on from where it was",
}


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Print errors of lrp_fx as one message, and exit with their code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        yield
    except (LrpError, OSError) as error:
        missing = isinstance(error, MissingExtraError)
        kind = "missing package" if missing else type(error).__name__
        Console(stderr=True).print(f"[bold red]{kind}[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(4 if missing else 1) from error
