"""Run suites of the zoo: every case in its own process, with a time limit; results are saved one by one."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from case import Case
from check import Row, check
from further import check_further
from gradient import check_gradient
from lowered import check_lowered
from page import write_pages
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrp_fx.files import write_text

SUITES = ("transformers", "timm", "torchvision", "pypi")


#: by section of the results
CHECKS: dict[str, Callable[..., Any]] = {
    "rows": check,
    "lowered": check_lowered,
    "further": check_further,
    "gradient": check_gradient,
}


def child(case: Case, section: str, connection: Connection) -> None:
    """Check one case and send its row."""
    import resource

    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # of the memory: a row that wants more fails
    resource.setrlimit(resource.RLIMIT_AS, (half, half))
    connection.send(CHECKS[section](case.build).as_dict())


class Results:
    """Rows of one section by key, in a JSON file that is rewritten after every row."""

    def __init__(self, path: Path, section: str = "rows") -> None:
        self.path, self.section = path, section
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"versions": {}, "rows": {}}
        self.rows: dict[str, Any] = self.document.setdefault(section, {})

    def put(self, case: Case, row: dict[str, Any]) -> None:
        self.rows[case.key] = row | {"ran": today_and_commit()}
        label = case.suite if self.section == "rows" else f"{case.suite}, {self.section}"
        self.document["versions"][label] = versions(case.suite)
        self.save()

    def seconds(self, case: Case) -> float:
        """Seconds that a case took in the first section: the quick ones are run first."""
        return float(self.document["rows"].get(case.key, {}).get("seconds", 0))

    def save(self) -> None:
        rest = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.document.items() if k not in CHECKS]
        for section in [k for k in CHECKS if k in self.document]:
            rows = sorted(self.document[section].items())
            lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows)
            rest.append(f"{json.dumps(section)}: {{\n{lines}\n}}")
        text = "{" + ",\n".join(rest) + "}\n"
        write_text(self.path, text)


@functools.cache
def today_and_commit() -> str:
    """When a row ran, and on which commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return f"{date.today()} {commit}".strip()


def versions(suite: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    names = {
        "transformers": ["transformers"],
        "timm": ["timm"],
        "torchvision": ["torchvision"],
        "pypi": ["x-transformers", "vit-pytorch"],
    }
    packages = {"python": platform.python_version(), "torch": torch.__version__}
    for name in names[suite]:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return packages


def wanted(cases: list[Case], rows: dict[str, Any], options: argparse.Namespace) -> list[Case]:
    """The cases to run: all without a row, or those that match ``--only``."""
    if options.only:
        return [c for c in cases if any(part in c.key for part in options.only)]
    if options.failed:
        return [c for c in cases if rows.get(c.key, {}).get("verdict") in ("fail", "timeout", "crash")]
    return cases if options.fresh else [c for c in cases if c.key not in rows]


def run(cases: list[Case], results: Results, jobs: int, limit: float, quiet: bool) -> None:
    """Run cases, ``jobs`` at a time."""
    fork = multiprocessing.get_context("fork")
    queue, running = list(cases), {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("zoo", total=len(cases))
        while queue or running:
            while queue and len(running) < jobs:
                case, (mine, theirs) = queue.pop(0), fork.Pipe()
                process: BaseProcess = fork.Process(target=child, args=(case, results.section, theirs), daemon=True)
                process.start()
                theirs.close()
                running[process.pid] = (case, process, mine, time.monotonic())
            time.sleep(0.05)
            for pid, (case, process, mine, begun) in list(running.items()):
                row = _row(process, mine, time.monotonic() - begun, limit)
                if row is None:
                    continue
                del running[pid]
                results.put(case, row)
                progress.advance(task)
                if row["verdict"] != "pass":
                    progress.console.print(
                        f"{row['verdict']:13} {case.key}  {row['reason'][:260]}",
                        highlight=False,
                        markup=False,
                        soft_wrap=True,
                    )
                elif not quiet:
                    progress.update(task, description=case.name[:40])


def _row(process: BaseProcess, mine: Connection, seconds: float, limit: float) -> dict[str, Any] | None:
    """The row of a finished process; None while it runs."""
    if mine.poll():
        try:
            row = mine.recv()
        except EOFError:
            process.join()
            row = Row("crash", f"the process ended with {process.exitcode} ({_signal(process.exitcode)})").as_dict()
    elif seconds > limit:
        process.kill()
        row = Row("timeout", f"not finished in {limit:g} s").as_dict()
    elif not process.is_alive() and not mine.poll():
        row = Row("crash", f"the process ended with {process.exitcode} ({_signal(process.exitcode)})").as_dict()
    else:
        return None
    process.join()
    return row


def _signal(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else "exit"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/zoo", description=__doc__)
    parser.add_argument("suites", nargs="*", help=", ".join(SUITES), default=["transformers"])
    parser.add_argument("--only", action="append", help="run the rows whose key contains this (again)")
    parser.add_argument("--failed", action="store_true", help="run failed rows again")
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--lowered", action="store_true", help="check lowered graphs against explain()")
    parser.add_argument("--further", action="store_true", help="other sizes, autograd's gradient, half precision")
    parser.add_argument("--gradient", action="store_true", help='rules="gradient" against autograd on the model')
    parser.add_argument("--broken", action="store_true", help="check the check: on rules broken on purpose")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=180, help="seconds per model")
    parser.add_argument("--results", type=Path, default=Path("docs/zoo.json"))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    section = next((name for name in CHECKS if vars(options).get(name)), "rows")
    results = Results(options.results, section)
    if options.broken:
        from broken import run_broken

        results.document["broken"] = run_broken()
        results.save()
        write_pages(options.results, results.document)
        return
    cases = [case for suite in options.suites for case in importlib.import_module(f"suite_{suite}").cases()]
    cases = sorted(cases, key=results.seconds)
    run(wanted(cases, results.rows, options), results, options.jobs, options.limit, options.quiet)
    results.save()
    write_pages(options.results, results.document)


if __name__ == "__main__":
    sys.exit(main())
