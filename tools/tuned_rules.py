"""Tune a rule set for every column on some samples, and compare it with all untuned ones on the others.

Writes the tuned rule sets to docs/tuned/COLUMN.toml, and their metrics to docs/tuning.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from columns import COLUMNS, EXTENSIBLE
from rich.console import Console

import lrp_fx
from lrp_fx.evaluate import Results, Task, evaluate, lrp
from lrp_fx.files import write_text
from lrp_fx.rules.ruleset import available


@dataclass(frozen=True)
class Search:
    """Parameters of the tuning of a column.

    Attributes:
        tuned_on: number of samples to tune on, its last ones.
        held_out: number of samples to measure on, its first ones; None for all others.
        trials: number of rule sets to try.
        depths: number of depth groups.
    """

    tuned_on: int = 100
    held_out: int | None = None
    trials: int = 100
    depths: int = 3


#: columns with more samples, or cheap ones
SEARCHES = {
    "recall": Search(200, 2000, 200),
    "brackets": Search(200, 2000, 200),
    "addition": Search(200, 3000, 200),
    "cnn": Search(150, 1647, 250, 8),
    "qa": Search(100, 500, 60),
}


def parts(name: str, search: Search) -> tuple[Task, Task]:
    """(samples to tune on, samples held out) of a column; no sample is in both.

    Raises:
        ValueError: if a sample is.
    """
    wanted = search.tuned_on + (search.held_out or 0)
    task = COLUMNS[name](wanted) if search.held_out and name in EXTENSIBLE else COLUMNS[name]()
    count = len(task) - min(search.tuned_on, len(task) // 2)
    held_in, held_out = task.part(slice(count, None), name), task.part(slice(0, count), name)
    if shared := _samples(held_in) & _samples(held_out):
        raise ValueError(f"{name}: {len(shared)} samples are in both parts")
    return held_in, held_out


def _samples(task: Task) -> set[bytes]:
    return {b"".join(v[i].numpy().tobytes() for v in task.inputs.values()) for i in range(len(task))}


def column(name: str, options: argparse.Namespace, console: Console) -> None:
    """Tune on one column and measure, unless results exist; save rule set and results."""
    folder = options.results / name
    if (folder / "cost.csv").is_file():
        return
    settings = {k: v for k in ("tuned_on", "trials", "depths") if (v := getattr(options, k)) is not None}
    search = dataclasses.replace(SEARCHES.get(name, Search()), **settings)
    held_in, held_out = parts(name, search)
    start = time.process_time()
    tuned = lrp_fx.tune(held_in.model, held_in, trials=search.trials, depths=search.depths, batch=options.batch)
    seconds = time.process_time() - start
    options.rules.mkdir(parents=True, exist_ok=True)
    ruleset = dataclasses.replace(tuned.ruleset, name="tuned")
    path = ruleset.save(options.rules / f"{name}.toml")
    console.print(f"{name}: {tuned.value:.3f} on {len(held_in)} samples after {tuned.trials} trials, {seconds:.0f} s")
    methods = [lrp(path), *(lrp(other) for other in available())]
    evaluate(held_out, methods, ["abpc"], batch=options.batch).save(folder)
    facts = {"trials": tuned.trials, "seconds": seconds, "held in": len(held_in), "value": tuned.value}
    roles = {k: v for k, v in tuned.study.best_params.items() if " " not in k}
    write_text(folder / "facts.json", json.dumps(facts | {"roles": roles}))


def row(name: str, folder: Path) -> str:
    """One line of the page."""
    results, facts = Results.load(folder), json.loads((folder / "facts.json").read_text())
    summary = results.summary().loc[(name, "abpc")].sort_values("mean", ascending=False)
    tuned, others = summary.loc["tuned"], summary.drop(index="tuned")
    best = others.iloc[0]
    apart = "yes" if tuned["low"] > others["high"].max() else "no"
    paired = _paired(results, others.index[0])
    roles = ", ".join(f"{role} {rule}" for role, rule in facts["roles"].items()) or "(no choice of roles)"
    return (
        f"| {name} | {tuned['mean']:.2f} [{tuned['low']:.2f}, {tuned['high']:.2f}] | {others.index[0]}: {best['mean']:.2f} "
        f"[{best['low']:.2f}, {best['high']:.2f}] | {others.loc['attnlrp', 'mean']:.2f} | {apart} | {paired} | "
        f"{int(tuned['samples'])}, {facts['held in']} | {facts['trials']}, {facts['seconds']:.0f} s | {roles} |"
    )


def _paired(results: Results, other: str) -> str:
    from lrp_fx.evaluate.results import bootstrap

    values: pd.DataFrame = results.values[results.values["metric"] == "abpc"].pivot(
        index="sample", columns="method", values="value"
    )
    difference: Any = (values["tuned"] - values[other]).to_numpy()
    low, high = bootstrap(difference)
    return f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def write(names: list[str], options: argparse.Namespace) -> None:
    """docs/tuning.md."""
    lines = [
        "# Tuned rule sets",
        "",
        f"Written by `tools/tune` on {time.strftime('%Y-%m-%d')} (torch {torch.__version__}, transformers {transformers.__version__}, one thread, float32).",
        "`lrp_fx.tune` searched rules by role and depth for ABPC on samples set apart; the table is about the others (no sample is in both, which",
        "the tool checks). Where more than the 400 digits that were not trained on are held out, the rest are digits of the training. Untuned are all rule sets",
        f"of `rules/` ({', '.join(available())}). The tuned rule sets lie in `docs/tuned/`. 95% bootstrap intervals; *apart* says whether the tuned",
        "interval lies above that of every untuned rule set; *difference* is to the best of these on the same samples.",
        "",
        "| column | tuned | best untuned | attnlrp | apart | difference | samples held out, tuned on | trials, processor time | rules chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [row(name, options.results / name) for name in names]
    write_text(options.report, "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", default=",".join(COLUMNS), help="comma-separated")
    parser.add_argument("--trials", type=int, help="(default: by column, mostly 100)")
    parser.add_argument("--depths", type=int, help="(default: by column, mostly 3)")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tuned-on", type=int, help="samples (default: by column, mostly 100)")
    parser.add_argument("--results", type=Path, default=Path(".models/tuning"))
    parser.add_argument("--rules", type=Path, default=Path("docs/tuned"))
    parser.add_argument("--report", type=Path, default=Path("docs/tuning.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    console = Console(stderr=True)
    for name in options.columns.split(","):
        column(name, options, console)
    done = [name for name in COLUMNS if (options.results / name / "facts.json").is_file()]
    write(done, options)
    console.print(f"{options.report} is written")


if __name__ == "__main__":
    main()
