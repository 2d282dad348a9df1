"""Check many random models, each in its own process; failures are minimised and reported by kind."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

import torch
from generated.checks import CHECKS, RULE_SETS, Case
from generated.programs import Program, parsed, random_program, smaller
from page import write_page
from rich.progress import Progress

LIMIT, SHRINKING = 240, 120  #: seconds for all checks of one model, and for making one failure smaller


def failure(check: str, program: Program, rules: str) -> str:
    """The failure of a check on a program; "" if it passes."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            CHECKS[check](Case(program, rules))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def smallest(check: str, program: Program, rules: str, said: str) -> tuple[Program, str]:
    """The smallest program on which a check fails in the same manner, and its message."""
    kind, end, shrunk = manner(said), time.monotonic() + SHRINKING, True
    while shrunk and time.monotonic() < end:
        shrunk = False
        for other in smaller(program):
            now = failure(check, other, rules)
            if now and manner(now) == kind:
                program, said, shrunk = other, now, True
                break
            if time.monotonic() > end:
                break
    return program, said


def manner(said: str) -> str:
    """A message without the parts that differ between programs: numbers, names of nodes, shapes."""
    return re.sub(r"parts\.\d+\S*|\d[\d.e+-]*|'\w+'", "_", said)[:70]


def examine(seed: int, connection: Connection) -> None:
    """Run every check on one program, and send (check, smallest program, message) for each failure."""
    torch.set_num_threads(1)
    program, rules = random_program(seed), RULE_SETS[seed % len(RULE_SETS)]
    connection.send(("begun", "", ""))
    failures, kinds = [], set()
    case = Case(program, rules)
    for name, check in CHECKS.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check(case)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if manner(said) not in kinds:  # the same refusal in every check is one failure
                kinds.add(manner(said))
                failures.append((name, program, said))
    for name, failing, said in failures:
        small, now = smallest(name, failing, rules, said)
        connection.send((name, f"{small}", f"{now} [{rules}]"))
    connection.send(("done", "", ""))


def commit() -> str:
    """The commit of this code, with a "+" for uncommitted changes; "" outside of git."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude", "*", "--dirty=+"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def run(seeds: list[int], jobs: int, document: dict[str, Any], save: Any) -> None:
    """Examine programs, ``jobs`` at a time."""
    fork, queue, running = multiprocessing.get_context("fork"), list(seeds), {}
    code = commit()
    with Progress() as progress:
        task = progress.add_task("random models", total=len(queue))
        while queue or running:
            while queue and len(running) < jobs:
                seed, (mine, theirs) = queue.pop(0), fork.Pipe(duplex=False)
                process: Any = fork.Process(target=examine, args=(seed, theirs), daemon=True)
                process.start()
                theirs.close()
                running[seed] = (process, mine, time.monotonic(), [])
            time.sleep(0.05)
            for seed, (process, mine, begun, failures) in list(running.items()):
                ended = False
                for name, program, said in _received(mine):
                    ended |= name in ("done", "crash")
                    if name == "crash":
                        process.join()
                        said = f"the process ended with {process.exitcode}"
                    if name not in ("begun", "done"):
                        failures.append({"check": name, "program": program or str(random_program(seed)), "said": said})
                if not ended and time.monotonic() - begun > LIMIT + SHRINKING * max(len(failures), 1):
                    process.kill()
                    failures.append(
                        {"check": "time", "program": str(random_program(seed)), "said": f"more than {LIMIT} s"}
                    )
                    ended = True
                if ended:
                    process.join()
                    del running[seed]
                    document["models"][str(seed)] = {
                        "seconds": round(time.monotonic() - begun, 1),
                        "failures": failures,
                        "commit": code,
                    }
                    save()
                    progress.advance(task)
                    for f in failures:
                        progress.console.print(
                            f"{seed}: {f['check']}: {f['said']}\n    {f['program']}", markup=False, soft_wrap=True
                        )


def _received(mine: Connection) -> Iterator[tuple[str, str, str]]:
    while mine.poll():
        try:
            message = mine.recv()
        except EOFError:
            message = ("crash", "", "")
        yield message
        if message[0] in ("done", "crash"):
            return


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first model; each next one has the next seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--failed", action="store_true", help="run failed programs again")
    parser.add_argument("--program", help="check this program only, and print the result of each check")
    parser.add_argument("--rules", default="attnlrp", help="the rule set for --program")
    parser.add_argument("--results", type=Path, default=Path("docs/fuzz.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.program:
        for name in CHECKS:
            print(f"{name:14}{failure(name, parsed(options.program), options.rules) or 'ok'}", flush=True)
        return
    path: Path = options.results
    document = json.loads(path.read_text()) if path.is_file() and not options.fresh else {"models": {}}
    command = f"tools/fuzz --examples {options.examples} --seed {options.seed}"
    document.update(command=command, torch=torch.__version__, date=time.strftime("%Y-%m-%d"))

    def save() -> None:
        rows = ",\n".join(
            f'"{k}": {json.dumps(v)}' for k, v in sorted(document["models"].items(), key=lambda kv: int(kv[0]))
        )
        head = ", ".join(f'"{k}": {json.dumps(v)}' for k, v in document.items() if k != "models")
        scratch = path.with_suffix(".tmp")
        scratch.write_text(f'{{{head}, "models": {{\n{rows}\n}}}}\n')
        scratch.replace(path)

    seeds = range(options.seed, options.seed + options.examples)
    failed = {s for s, row in document["models"].items() if row["failures"]}
    run(
        [s for s in seeds if str(s) not in document["models"] or (options.failed and str(s) in failed)],
        options.jobs,
        document,
        save,
    )
    save()
    write_page(document, path.with_suffix(".md"))


if __name__ == "__main__":
    main()
