"""Run the benchmark, or parts of it, and write docs/performance.md from docs/performance.json.

Every row is a process of its own, in which the contenders take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmark.cases import CASES, GENERATING, ON_GPU
from benchmark.measure import isolated
from benchmark.page import write
from benchmark.results import Results

FEWER = {"llama-4096": 3}  #: repetitions, if a single one takes long
MEASURED = ("gradient", "eager", "lowered", "compiled")
HALVED = ("llama-512", "bert", "vit")  #: of a processor's rows, those in bfloat16, too


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, function) of every job, in order of interest."""
    device, repeats = options.device, options.repeats
    gpu = device == "cuda"
    dtypes = ("bfloat16",) if gpu else ("float32",)
    cases = list(ON_GPU if gpu else CASES)
    rows = [(name, dtype) for dtype in dtypes for name in cases]
    rows += [] if gpu else [(name, "bfloat16") for name in HALVED]
    rows.sort(key=lambda row: row != ("llama-512", "float32"))
    for name, dtype in rows:
        row = {"name": name, "device": device, "dtype": dtype}
        yield f"times {name} {dtype}", _call("times", row | {"repeats": FEWER.get(name, repeats)})
    yield "many", _call("many", {"device": device, "dtype": dtypes[0], "repeats": 3})
    for name in GENERATING:
        for dtype in dtypes if gpu else ("float32", "bfloat16"):
            yield f"generated {name} {dtype}", _call("generated", {"name": name, "device": device, "dtype": dtype})
    if options.lxt is not None:
        row = {"name": "llama-512", "device": device, "dtype": dtypes[0], "repeats": repeats, "path": options.lxt}
        yield "lxt", _call("against_lxt", row)
    for name in cases:
        if name == "llama-16x1024":
            continue
        for contender in MEASURED:
            row = {"name": name, "device": device, "dtype": dtypes[0], "contender": contender}
            yield f"memory {name} {contender}", _call("memory", row)
    if not gpu:
        for contender in ("gradient", "eager", "low"):
            row = {"name": "llama-32x512", "device": device, "dtype": "float32", "contender": contender}
            yield f"memory llama-32x512 {contender}", _call("memory", row)
        yield "conversion", _call("conversion", {})
        for layers in (8, 32):
            for per_block in (False, True):
                row = {"layers": layers, "per_block": per_block}
                yield f"compile {layers} {per_block}", _call("compile_depth", row, fresh=True)
        yield "start", _starts


def _call(function: str, arguments: dict[str, Any], fresh: bool = False) -> Callable[[], dict[str, Any]]:
    return lambda: isolated(function, arguments, fresh)


def _starts() -> dict[str, Any]:
    """First and second process, explaining eagerly and compiled."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            f"{'compiled' if compiled else 'eager'} {turn}": isolated("start", {"compiled": compiled}, cache=cache)
            for compiled in (False, True)
            for turn in ("first", "second")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated beginnings of job names (times llama, memory, many, ...)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lxt", help="folder of LXT's source, for a row about it")
    parser.add_argument("--missing", action="store_true", help="only jobs without a measurement")
    parser.add_argument("--results", type=Path, default=Path("docs/performance.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    console = Console(stderr=True)
    results = Results(options.results, options.device)
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    measured = set(results.read()) if options.missing else set()
    chosen = [(job, run) for job, run in jobs(options) if job.startswith(wanted) and job not in measured]
    with Progress(console=console) as progress:
        task = progress.add_task("benchmark", total=len(chosen))
        for job, run in chosen:
            progress.update(task, description=job)
            try:
                results.keep(job, run())
            except RuntimeError as error:
                console.print(f"[red]{job}[/]: {error}")
            progress.advance(task)
    write(options.results, options.report)
    console.print(f"{options.report} is written")


if __name__ == "__main__":
    main()
