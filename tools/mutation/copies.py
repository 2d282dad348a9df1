"""Copies of the repository, and pytest runs in them: forks of this process, which has imported the tests' libraries."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutations import ROOT, Mutation

#: libraries of all test files, without this package; in a process that has imported them, pytest starts at once
LOADED = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "torch._functorch.partitioners",
    "transformers",
    "networkx",
    "pytest",
)


class Copy:
    """A copy of the tracked and untracked files of the repository, in which a line can be changed.

    Attributes:
        root: its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        self._scratch = folder / "scratch"
        self._log = folder / "log"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.root / name)

    def change(self, mutation: Mutation) -> None:
        """Apply a mutation to the copy, until :meth:`restore`."""
        file = self.root / mutation.file
        self._before = file, file.read_text()
        file.write_text(mutation.applied(self.root))

    def restore(self) -> None:
        """Undo the mutation."""
        file, text = self._before
        file.write_text(text)

    def start(self, tests: Sequence[str], *options: str) -> Run:
        """Start a run of tests."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        arguments = [*tests, "-p", "no:cacheprovider", "--tb=line", "-o", "addopts=", "--strict-markers", "-q"]
        arguments += ["-W", "ignore", f"--basetemp={self._scratch}", *options]
        process: Any = multiprocessing.get_context("fork").Process(
            target=_tested, args=(self.root, arguments, self._log), daemon=False
        )
        process.start()
        return Run(process, self._log)


class Run:
    """A run of pytest."""

    def __init__(self, process: Any, log: Path) -> None:
        self._process, self._log, self._begun = process, log, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._begun

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    @property
    def said(self) -> str:
        """Its output."""
        return self._log.read_text(errors="replace").strip()

    def stop(self) -> None:
        """Kill it and its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


def _tested(root: Path, arguments: list[str], log: Path) -> None:
    """pytest in a copy, in its own process; its output goes to a file."""
    os.setsid()
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root))
    spec = importlib.util.find_spec("lrp_fx")
    assert spec is not None and Path(str(spec.origin)).is_relative_to(root), "another copy of the package is loaded"
    import pytest

    status = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(status)
