"""The report of mutations as a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mutations import Mutation

_HEAD = """# Mutations

Made by `{command}` on {date} with Python {python} and torch {torch}. Each row of
[tools/mutation/mutations.toml](../tools/mutation/mutations.toml) changes one line of the package, in a copy of the
repository, and the tests named for it run: a mutation is *killed* where one of them fails. On the code as it is, all of
them pass. **{killed} of {count} are killed.**
"""


def write_page(document: dict[str, Any], every: Sequence[Mutation], path: Path) -> None:
    """Write ``docs/mutations.md`` from the contents of ``docs/mutations.json``."""
    rows = document["mutations"]
    killed = sum(rows[m.name]["outcome"] == "killed" for m in every)
    head = {key: document[key] for key in ("command", "date", "python", "torch")}
    page = [_HEAD.format(**head, killed=killed, count=len(every))]
    for stage, members in groupby(every, key=lambda m: m.stage):
        page.append(f"\n## {stage}\n\n| | in place of | stands | so that | by |\n|---|---|---|---|---|")
        page += [_row(mutation, rows[mutation.name]) for mutation in members]
    path.write_text("\n".join(page) + "\n")


def _row(mutation: Mutation, row: dict[str, Any]) -> str:
    by = f"`{row['by'].removeprefix('tests/')}`" if row["by"] else ""
    cells = (
        f"{row['outcome']}: {mutation.name}", _code(mutation.old), _code(mutation.new),
        f"{mutation.why} ({mutation.file.removeprefix('lrp_fx/')})", by,
    )  # fmt: skip
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
