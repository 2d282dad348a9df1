"""Do notes on weak maps appear on good maps? Writes docs/notes.md.

On columns of the faithfulness study, samples are explained one by one. Their maps have been judged before, sample by sample,
by the area between perturbation curves and by annotated truth (`tools/faithfulness`). On tiny models of the zoo, whose weights
are random, notes are counted only. Measurements are saved in a JSON file after every column and every model.

    tools/note_alarms [--columns sentiment,photos] [--zoo 60]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parent / "zoology"))

import identity
import torch
import transformers
from columns import COLUMNS
from columns.weights import SEED
from faithfulness import by_length

import lrp_fx
from lrp_fx.evaluate import Task
from lrp_fx.files import write_text
from lrp_fx.results.notes import SIGNS, Signs

RULES = ("default", "attnlrp")
EVERY = 5  #: of a column's 200 samples
MEASURES = ("abpc", "top1", "inside")


def signs(attribution: lrp_fx.Attribution) -> dict[str, Any]:
    """Names of the notes on one sample, and the numbers behind them."""
    found = Signs(attribution.relevance, attribution.target.double().reshape(-1), attribution.amounts())
    value = attribution.target.double().abs().sum()
    return {
        "notes": [note.name for note in attribution.notes],
        "inputs": float((found.inputs * found.target.sign()).sum() / value),
        "magnitude": float(found.magnitude.sum() / value),
        "amounts": {category: float(f"{amount:.4g}") for category, amount in attribution.amounts().items()},
    }


def column(task: Task, results: Path) -> list[dict[str, Any]]:
    """A row per sample and rule set: its notes, and the measures of its map.

    Raises:
        FileNotFoundError: if the column has not been measured by `tools/faithfulness`.
    """
    saved = identity.load(identity.Identity.of(task, SEED).folder(results, task.name))
    if saved is None:
        raise FileNotFoundError(f"no results of {task.name} in {results}: run tools/faithfulness --columns {task.name}")
    measured = saved.values.set_index(["method", "metric", "sample"])["value"].to_dict()
    rows = []
    for rules in RULES:
        values = {m: [measured.get((rules, m, i)) for i in range(len(task))] for m in MEASURES}
        for sample in range(0, len(task), EVERY):
            batch = task.batch(slice(sample, sample + 1))
            explained = task.converted.explain(**batch.inputs, target=batch.target, rules=rules)
            row = {m: v[sample] for m, v in values.items() if v[sample] is not None}
            rows.append({"rules": rules, "sample": sample, **row, **signs(explained)})
    return rows


def zoo(count: int, known: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Tiny models, evenly chosen among the classes of transformers, and their notes under the default rules."""
    import suite_transformers
    from case import NotBuildable

    cases = suite_transformers.cases()
    for case in cases[:: max(1, len(cases) // count)][:count]:
        if case.key in known:
            continue
        try:
            built = case.build()
            explained = lrp_fx.convert(built.model).explain(*built.args, **built.inputs, target=built.target)
            yield case.key, signs(explained)
        except (NotBuildable, lrp_fx.errors.LrpError, RuntimeError) as error:
            yield case.key, {"failed": f"{type(error).__name__}: {str(error)[:200]}"}


def good(row: Mapping[str, Any], median: float) -> bool:
    """Whether the map of a sample is good: above its column's median by perturbation, or with the truth on top."""
    return row["abpc"] > median or row.get("top1") == 1.0 or row.get("inside", 0.0) > 0.5


def report(kept: Mapping[str, Any]) -> str:
    """docs/notes.md."""
    lines = [*_HEAD.format(**kept["made"]).splitlines(), ""]
    lines += [
        "| column | rules | samples | good maps | "
        + " | ".join(f"{n}: good, others" for n in SIGNS)
        + " | ABPC without, with a note |",
        "|---|---|--:|--:|" + "--:|" * len(SIGNS) + "--:|",
    ]
    everywhere: dict[str, list[bool]] = {rules: [] for rules in RULES}
    for name, rows in kept["columns"].items():
        areas = sorted(r["abpc"] for r in rows if r["rules"] == "default")
        median = areas[len(areas) // 2]
        for rules in RULES:
            chosen = [r for r in rows if r["rules"] == rules]
            fine, others = ([r for r in chosen if good(r, median) is wanted] for wanted in (True, False))
            cells = [f"{_count(fine, n)}, {_count(others, n)}" for n in SIGNS]
            with_, without = ([r["abpc"] for r in chosen if bool(r["notes"]) is wanted] for wanted in (True, False))
            lines.append(
                f"| {name} | {rules} | {len(chosen)} | {len(fine)} | {' | '.join(cells)} | {_mean(without)}, {_mean(with_)} |"
            )
            everywhere[rules] += [bool(r["notes"]) for r in fine]
    lines.append("")
    for rules, noted in everywhere.items():
        lines.append(f"- `{rules}`: a note on {sum(noted)} of {len(noted)} good maps.")
    models = {key: row for key, row in kept["zoo"].items() if "failed" not in row}
    if models:
        lines += ["", "## Tiny models with random weights", ""]
        counts = ", ".join(f"{n} {sum(n in row['notes'] for row in models.values())}" for n in SIGNS)
        none = sum(not row["notes"] for row in models.values())
        lines.append(f"{len(models)} classes of transformers under the default rules: no note {none}; {counts}.")
    return "\n".join(lines) + "\n"


def _count(rows: list[dict[str, Any]], name: str) -> int:
    return sum(name in row["notes"] for row in rows)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"


_HEAD = """# Notes on good maps

Made by `tools/note_alarms` on {date} (torch {torch}, transformers {transformers}; float32); the numbers behind every note are in
[notes.json](notes.json). A note warns of a weak map ([using.md](using.md)). Here one sample in five of each column of
[faithfulness.md](faithfulness.md) is explained alone, with its ledger. A map is *good* if its area between perturbation curves is above the
column's median under the default rules, or if annotated truth is on top, or has more than half of all positive relevance. Each cell counts the notes on
good maps, then on the others.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--zoo", type=int, default=60, help="number of tiny models")
    parser.add_argument("--results", type=Path, default=Path(".models/faithfulness"))
    parser.add_argument("--kept", type=Path, default=Path("docs/notes.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/notes.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    kept = json.loads(options.kept.read_text()) if options.kept.exists() else {"columns": {}, "zoo": {}}

    def save() -> None:
        kept["made"] = {
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        write_text(options.kept, json.dumps(kept, indent=0) + "\n")

    for name in filter(None, options.columns.split(",")):
        if name not in kept["columns"]:
            kept["columns"][name] = column(by_length(COLUMNS[name]().part(slice(0, 200), name)), options.results)
            save()
            print(name, flush=True)
    for key, row in zoo(options.zoo, kept["zoo"]) if options.zoo else ():
        kept["zoo"][key] = row
        save()
        print(key, row.get("failed", row.get("notes")), flush=True)
    write_text(options.report, report(kept))


if __name__ == "__main__":
    main()
