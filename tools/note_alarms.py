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
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
MEASURES = ("abpc", "top1", "inside", "blank")


def signs(attribution: lrp_fx.Attribution) -> dict[str, Any]:
    """Names of the notes on one sample, and the numbers behind them."""
    shown = Signs(attribution.relevance, attribution.target.double().reshape(-1), attribution.amounts())
    value = attribution.target.double().abs().sum()
    return {
        "notes": [note.name for note in attribution.notes],
        "inputs": float((shown.inputs * shown.target.sign()).sum() / value),
        "magnitude": float(shown.magnitude.sum() / value),
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


def zoo(count: int, done: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Tiny models, evenly chosen among the classes of transformers, and their notes under the default rules."""
    import suite_transformers
    from case import NotBuildable

    cases = suite_transformers.cases()
    for case in cases[:: max(1, len(cases) // count)][:count]:
        if case.key in done:
            continue
        try:
            built = case.build()
            explained = lrp_fx.convert(built.model).explain(*built.args, **built.inputs, target=built.target)
            yield case.key, signs(explained)
        except (NotBuildable, lrp_fx.errors.LrpError, RuntimeError) as error:
            yield case.key, {"failed": f"{type(error).__name__}: {str(error)[:200]}"}


def good(row: Mapping[str, Any], median: float) -> bool:
    """Whether the map of a sample is good: by the place of the truth, by the token of the truth, or by perturbation."""
    if "inside" in row:
        return row["inside"] > 0.5 and row["blank"] < 0.5
    return row["top1"] == 1.0 if "top1" in row else row["abpc"] > median


def report(stored: Mapping[str, Any]) -> str:
    """docs/notes.md."""
    columns = {name: [Judged.of(rows, rules) for rules in RULES] for name, rows in stored["columns"].items()}
    lines = [*_HEAD.format(**stored["made"]).splitlines(), ""]
    lines += [
        "| column | rules | samples | good maps | notes on good maps | notes on others | ABPC without, with a note |",
        "|---|---|--:|--:|---|---|--:|",
    ]
    lines += [judged.line(name) for name, both in columns.items() for judged in both]
    lines.append("")
    for rules, everywhere in zip(RULES, zip(*columns.values(), strict=True), strict=True):
        noted = sum(bool(_seen(row)) for judged in everywhere for row in judged.good)
        lines.append(f"- `{rules}`: a note on {noted} of {sum(len(judged.good) for judged in everywhere)} good maps.")
    softmax = [both[0].softmax(name) for name, both in columns.items()]
    if any(softmax):
        lines += [*_SOFTMAX.splitlines(), *filter(None, softmax)]
    models = {key: row for key, row in stored["zoo"].items() if "failed" not in row}
    if models:
        lines += ["", "## Tiny models with random weights", ""]
        counts = ", ".join(f"*{n}* on {c}" for n in SIGNS if (c := sum(n in row["notes"] for row in models.values())))
        none = sum(not _seen(row) for row in models.values())
        lines.append(f"{len(models)} classes of transformers under the default rules: no note on {none}, {counts}.")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Judged:
    """The samples of a column under one rule set, divided into good maps and others."""

    rules: str
    good: list[dict[str, Any]]
    others: list[dict[str, Any]]

    @classmethod
    def of(cls, rows: list[dict[str, Any]], rules: str) -> Judged:
        """The rows under ``rules``; the median is the default's."""
        median = statistics.median(row["abpc"] for row in rows if row["rules"] == "default")
        chosen = [row for row in rows if row["rules"] == rules]
        fine = [good(row, median) for row in chosen]
        divided = [
            [row for row, is_good in zip(chosen, fine, strict=True) if is_good is wanted] for wanted in (True, False)
        ]
        return cls(rules, *divided)

    def line(self, name: str) -> str:
        """A line of the table."""
        rows = [*self.good, *self.others]
        areas = [_mean([row["abpc"] for row in rows if bool(_seen(row)) is noted]) for noted in (False, True)]
        cells = [name, f"`{self.rules}`", str(len(rows)), str(len(self.good)), _counts(self.good), _counts(self.others)]
        return f"| {' | '.join(cells)} | {', '.join(areas)} |"

    def softmax(self, name: str) -> str:
        """A line for a column where softmax took more than half of the value of some samples; empty for others."""
        rows = [*self.good, *self.others]
        shares = [abs(row["amounts"].get("softmax", 0.0)) / abs(sum(row["amounts"].values())) for row in rows]
        most = [row["abpc"] for row, share in zip(rows, shares, strict=True) if share > 0.5]
        rest = [row["abpc"] for row, share in zip(rows, shares, strict=True) if share <= 0.5]
        return f"| {name} | {len(most)} of {len(rows)} | {_mean(most)} | {_mean(rest)} |" if most else ""


def _seen(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row["notes"] if name in SIGNS]


def _counts(rows: list[dict[str, Any]]) -> str:
    counted = Counter(name for row in rows for name in _seen(row))
    return ", ".join(f"*{name}* {count}" for name, count in counted.items()) or "none"


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"


_HEAD = """# Notes on good maps

Made by `tools/note_alarms` on {date} (torch {torch}, transformers {transformers}; float32); the numbers behind every note are in
[notes.json](notes.json). A note warns of a weak map ([using.md](using.md)). Here one sample in five of each column of
[faithfulness.md](faithfulness.md) is explained alone, with its ledger. A map is *good* if most
positive relevance lies where the answer is and less than half of it where there is nothing (crnn, speech), if the most relevant token is annotated
(phonemes), or if its area between perturbation curves is above the column's median under the default rules (all others, so half of the default's
maps count as good).
"""

_SOFTMAX = """
## What softmax took is no sign

Samples where softmax took more than half of the explained value, under the default rules, have maps that are as good as others or better. There was a note on
them until it was measured here.

| column | samples | ABPC of these | ABPC of all others |
|---|--:|--:|--:|"""


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
    stored = json.loads(options.kept.read_text()) if options.kept.exists() else {"columns": {}, "zoo": {}}

    def save() -> None:
        stored["made"] = {
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        write_text(options.kept, json.dumps(stored, indent=0) + "\n")

    for name in filter(None, options.columns.split(",")):
        if name not in stored["columns"]:
            stored["columns"][name] = column(by_length(COLUMNS[name]().part(slice(0, 200), name)), options.results)
            save()
            print(name, flush=True)
    for key, row in zoo(options.zoo, stored["zoo"]) if options.zoo else ():
        stored["zoo"][key] = row
        save()
        print(key, row.get("failed", row.get("notes")), flush=True)
    write_text(options.report, report(stored))


if __name__ == "__main__":
    main()
