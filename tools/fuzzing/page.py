"""The report of random models as a page."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from generated.checks import CHECKS
from generated.programs import described, random_program

_HEAD = """# Random models

Made by `{command}` on {date} with torch {torch}: {count} random models{rest}, each a program of three to eight parts
([tests/generated/](../tests/generated)) over one or more inputs, in float64. {passed} of them hold in every way
below, {failed} do not. Code that they were run by: {code}. The first thirty are in `tests/test_random_models.py`. A
program is checked again with `tools/fuzz --program "..."`.
"""


def write_page(document: dict[str, Any], path: Path) -> None:
    """Write ``docs/fuzz.md`` from the contents of ``docs/fuzz.json``."""
    models: dict[str, Any] = document["models"]
    failures = [(seed, f) for seed, row in models.items() for f in row["failures"]]
    failed = {seed for seed, _ in failures}
    head = {k: document[k] for k in ("command", "date", "torch")}
    asked = int(re.findall(r"--examples (\d+)", document["command"])[0])
    head["rest"] = f" of {asked} (stopped; the same command goes on)" if len(models) < asked else ""
    page = [
        _HEAD.format(
            **head, count=len(models), failed=len(failed), passed=len(models) - len(failed), code=_commits(models)
        )
    ]
    by_check = Counter(f["check"] for _, f in failures)
    page.append("| check | what | failures |\n|---|---|--:|")
    page += [
        f"| {name} | {(check.__doc__ or '').splitlines()[0]} | {by_check[name]} |" for name, check in CHECKS.items()
    ]
    page += [f"| {name} | | {count} |" for name, count in by_check.items() if name not in CHECKS]
    page.append("\n## What does not hold\n")
    page += _kinds(failures) or ["Nothing."]
    page.append("\n## Parts\n")
    used: Counter[str] = Counter()
    for seed in models:
        used.update(described(random_program(int(seed))))
    page.append(", ".join(f"{part} {count}" for part, count in used.most_common()) + ".")
    path.write_text("\n".join(page) + "\n")


def _commits(models: dict[str, Any]) -> str:
    """Number of models per commit, with the first and the last seed."""
    groups: dict[str, list[int]] = defaultdict(list)
    for seed, row in models.items():
        groups[row.get("commit") or "unknown"].append(int(seed))
    counted = sorted(groups.items(), key=lambda group: -len(group[1]))
    return ", ".join(f"{len(seeds)} by {commit} (of seeds {min(seeds)} to {max(seeds)})" for commit, seeds in counted)


def _kinds(failures: list[tuple[str, Any]]) -> list[str]:
    """One entry per check and manner of failure, with the smallest program."""
    groups: dict[tuple[str, str], list[tuple[str, Any]]] = defaultdict(list)
    for seed, f in failures:
        groups[f["check"], re.sub(r"parts\.\d+\S*|\d[\d.e+-]*|'\w+'", "_", f["said"])[:50]].append((seed, f))
    lines = []
    for (check, _), members in sorted(groups.items(), key=lambda kv: -len(kv[1])):
        seed, shown = min(members, key=lambda m: len(m[1]["program"]))
        lines.append(
            f"- **{check}**, {len(members)} times (seed {seed}): {shown['said'].replace('|', '/')}\n  `{shown['program']}`"
        )
    return lines
