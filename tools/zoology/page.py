"""The zoo's results as a page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

_HEAD = """# The zoo

Every row is one class of a package, built tiny with random weights, converted with nothing written for it, and checked:
its outputs in float32 (at most 1e-5 off, relative); under `cp_lrp` in float64 with biases zeroed, that the relevance of
inputs and sources (positions, class tokens) is the explained value to 1e-6, where the explained value is a random
projection of the whole output; under `attnlrp`, that no node loses relevance unaccounted.

Made by `tools/zoo` ({versions}).
"""


def write_page(document: dict[str, Any], path: Path) -> None:
    """Write ``docs/zoo.md`` from the contents of ``docs/zoo.json``."""
    rows: dict[str, dict[str, Any]] = document["rows"]
    versions = "; ".join(
        f"{suite}: " + ", ".join(f"{k} {v}" for k, v in found.items())
        for suite, found in sorted(document["versions"].items())
    )
    suites = sorted({key.split("/")[0] for key in rows})
    parts = [_HEAD.format(versions=versions), _summary(rows, suites)]
    if "broken" in document:
        parts.append(_broken(document["broken"]))
    if "lowered" in document:
        parts.append(_lowered(document["lowered"]))
    parts += [_failures(rows), *(_table(rows, suite) for suite in suites)]
    path.write_text("\n".join(parts))


def _summary(rows: dict[str, dict[str, Any]], suites: list[str]) -> str:
    lines = [
        "| suite | classes | built | pass | of those built | by export | by trace |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for suite in suites:
        mine = [row for key, row in rows.items() if key.startswith(suite + "/")]
        built = [row for row in mine if row["verdict"] != "not buildable"]
        passed = [row for row in built if row["verdict"] == "pass"]
        routes = Counter(row["route"] for row in passed)
        lines.append(
            f"| {suite} | {len(mine)} | {len(built)} | {len(passed)} | {len(passed) / max(len(built), 1):.1%} "
            f"| {routes['export']} | {routes['trace']} |"
        )
    return "\n".join(lines) + "\n"


def _lowered(rows: dict[str, dict[str, Any]]) -> str:
    """Lowered graphs against the eager sweep."""
    lines = [
        "## Other ways to the same relevance\n",
        "Of the largest logit under `attnlrp`, in float64 to 1e-6 (`tools/zoo --lowered`): the lowered graph, with the",
        "samples it was lowered with and, where it leaves their number free, with twice as many; `targets=[...]`, where",
        'targets are classes or tokens; `memory="low"`. In each column: how many were compared.\n',
        "| suite | built | pass | of those built | lowered | twice the samples | targets | low memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for suite in sorted({key.split("/")[0] for key in rows}):
        built = [r for k, r in rows.items() if k.startswith(suite + "/") and r["verdict"] != "not buildable"]
        passed = [r for r in built if r["verdict"] == "pass"]
        counts = [sum(r[k] is not None for r in built) for k in ("difference", "resized", "many", "low")]
        share = f"{len(passed) / max(len(built), 1):.1%}"
        lines.append(f"| {suite} | {len(built)} | {len(passed)} | {share} | " + " | ".join(map(str, counts)) + " |")
    lines.append("")
    lines += _reasons({key: row for key, row in rows.items() if row["verdict"] != "not buildable"})
    return "\n".join(lines) + "\n"


def _reasons(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"- `{key}`: **{row['verdict']}**: {row['reason'].replace('|', '/')}"
        for key, row in sorted(rows.items())
        if row["verdict"] != "pass"
    ]


def _failures(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["## What does not pass, and why\n", *_reasons(rows)]
    lines += ["", "## Checked otherwise\n"]
    lines += [f"- `{key}`: {row['note']}" for key, row in sorted(rows.items()) if row.get("note")]
    return "\n".join(lines) + "\n"


def _broken(broken: dict[str, dict[str, str]]) -> str:
    models = sorted({m for results in broken.values() for m in results})
    lines = [
        "## The check, on rules broken on purpose\n",
        "| what is broken | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
    ]
    lines += [
        f"| {what} | " + " | ".join(results.get(m, "") for m in models) + " |" for what, results in broken.items()
    ]
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, Any]], suite: str) -> str:
    lines = [
        f"## {suite}\n",
        "| class | verdict | nodes | capture s | route | forward | cp_lrp | literals | attnlrp, worst node | roles |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|---|",
    ]
    for key, row in sorted(rows.items()):
        if not key.startswith(suite + "/") or row["verdict"] == "not buildable":
            continue
        roles = ", ".join(f"{role} {count}" for role, count in sorted(row["roles"].items(), key=lambda kv: -kv[1]))
        numbers = [row["forward"], row["conservation"], row["literals"], row["role_defect"]]
        shown = " | ".join("" if n is None else f"{n:.0e}" if n else "0" for n in numbers)
        lines.append(
            f"| {key.partition('/')[2]} | {row['verdict']} | {row['nodes']} | {row['capture_seconds']} | {row['route']} "
            f"| {shown} | {roles} |"
        )
    return "\n".join(lines) + "\n"
