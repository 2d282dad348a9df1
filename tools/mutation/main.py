"""Apply one mutation at a time to a copy of the repository, and run the tests that have to kill it."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from copies import LOADED, Copy, Run
from mutations import ROOT, Mutation, StaleError, check, mutations
from page import write_page
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LIMIT = 900  #: seconds for the tests of one mutation
#: exit status of pytest -> fate of the mutation; any other status is an error
OUTCOMES = {0: "survived", 1: "killed"}


def examine(pending: Sequence[Mutation], copies: list[Copy], done: Callable[[Mutation, dict[str, Any]], None]) -> None:
    """Examine mutations, one at a time in each copy."""
    waiting, running = list(pending), dict[Mutation, tuple[Copy, Run]]()
    while waiting or running:
        while waiting and copies:
            mutation, copy = waiting.pop(0), copies.pop()
            copy.change(mutation)
            running[mutation] = copy, copy.start(mutation.tests, "-x")
        time.sleep(0.05)
        for mutation, (copy, run) in list(running.items()):
            status = run.status
            if status is None and run.seconds > LIMIT:
                run.stop()
                outcome = "timed out"
            elif status is None:
                continue
            else:
                outcome = OUTCOMES.get(status, "broken")
            copy.restore()
            failed = [
                line.partition(" ")[2] for line in run.said.splitlines() if line.startswith(("FAILED ", "ERROR "))
            ]
            row = {
                "outcome": outcome,
                "by": failed[0].partition(" - ")[0] if failed else "",
                "seconds": round(run.seconds, 1),
            }
            done(
                mutation,
                row
                | {"digest": digest(mutation, copy.root)}
                | ({"said": run.said[-400:]} if outcome == "broken" else {}),
            )
            del running[mutation]
            copies.append(copy)


def pass_as_it_is(pending: Sequence[Mutation], copy: Copy) -> None:
    """Run the tests of mutations on the unchanged code.

    Raises:
        SystemExit: if they fail, as they could not kill a mutation.
    """
    tests = sorted({test for mutation in pending for test in mutation.tests})
    with Console(stderr=True).status(f"tests on the code as it is: {len(tests)}"):
        run = copy.start(tests)
        while run.status is None:
            time.sleep(0.1)
    if run.status != 0:
        raise SystemExit(f"the tests do not pass on the code as it is:\n{run.said[-4000:]}")


def digest(mutation: Mutation, root: Path = ROOT) -> str:
    """Digest of the inputs of a result: the entry, the changed file, and the files of its tests."""
    files = sorted({mutation.file, *(t.partition("::")[0] for t in mutation.tests)})
    texts = [repr(mutation), *((ROOT / f).read_text() for f in files)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def save(path: Path, rows: dict[str, Any]) -> None:
    """Write results so far."""
    versions = {"python": platform.python_version(), "torch": sys.modules["torch"].__version__}
    head = json.dumps({"command": "tools/mutate", "date": time.strftime("%Y-%m-%d"), **versions})
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
    scratch = path.with_suffix(".tmp")
    scratch.write_text(f'{head[:-1]}, "mutations": {{\n{lines}\n}}}}\n')
    scratch.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/mutate", description=__doc__)
    parser.add_argument("names", nargs="*", help="of mutations, run again in any case; all where none is given")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--check", action="store_true", help="only see that every line of the list is still there")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "mutations.json")
    options = parser.parse_args()
    every = mutations()
    try:
        check(every)
    except StaleError as error:
        raise SystemExit(f"tools/mutation/mutations.toml does not fit the code:\n{error}") from None
    if unknown := set(options.names) - {m.name for m in every}:
        raise SystemExit(f"no mutation is called {', '.join(sorted(unknown))}")
    if options.check:
        print(f"{len(every)} mutations, all of them of lines that are there")
        return
    for module in LOADED:
        importlib.import_module(module)
    path: Path = options.results
    rows: dict[str, Any] = json.loads(path.read_text())["mutations"] if path.is_file() and not options.fresh else {}
    rows = {m.name: rows[m.name] for m in every if m.name in rows}
    chosen = [m for m in every if m.name in options.names] if options.names else every
    pending = [m for m in chosen if options.names or rows.get(m.name, {}).get("digest") != digest(m)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copies = [Copy(Path(folder) / str(job)) for job in range(options.jobs if pending else 0)]
        if pending:
            pass_as_it_is(pending, copies[0])
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("mutations", total=len(pending))

            def done(mutation: Mutation, row: dict[str, Any]) -> None:
                rows[mutation.name] = row
                save(path, rows)
                progress.advance(task)
                shown = f"{row['outcome']:9} {row['seconds']:6.1f} s  {mutation.name}: {row['by']}{row.get('said', '')}"
                progress.console.print(shown, markup=False, highlight=False, soft_wrap=True)

            examine(pending, copies, done)
    save(path, rows)
    if all(m.name in rows for m in every):
        write_page(json.loads(path.read_text()), every, path.with_suffix(".md"))
    bad = [m.name for m in chosen if rows[m.name]["outcome"] != "killed"]
    print(f"{len(chosen) - len(bad)} of {len(chosen)} killed" + (f"; not: {', '.join(bad)}" if bad else ""))


if __name__ == "__main__":
    main()
