"""The zoo's results as pages: docs/zoo.md, and docs/zoo.html to search for a class.

``python tools/zoology/page.py`` makes both from docs/zoo.json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from further import CORRELATION, SUM
from gradient import GRADIENT

from lrp_fx.files import write_text
from lrp_fx.viz.pages import template, write_page

_HEAD = """# The zoo

Every row is one class of a package, built tiny with random weights, converted with nothing written for it, and checked:
its outputs in float32 (at most 1e-5 off, relative); under `cp_lrp` in float64 with biases zeroed, that the relevance of
inputs and sources (positions, class tokens) is the explained value to 1e-6, where the explained value is a random
projection of the whole output; under `attnlrp`, that no node loses relevance unaccounted.

To find a class: search this page for its name or its model type, or open [zoo.html](zoo.html), which searches as you type. A class that is not here: `lrp_fx.testing.check`
runs the same check on yours ([integrations.md](integrations.md)).

Made by `tools/zoo` ({versions}).
Rows ran on these days: {days}. A row of zoo.json that says `ran` names its commit.
"""
#: section of zoo.json -> the name of its check
SECTIONS = {"rows": "the check", "lowered": "other ways", "further": "other sizes", "gradient": "gradient"}
_TEMPLATE = Path(__file__).with_name("zoo.html.jinja")


def write_pages(results: Path, document: dict[str, Any] | None = None) -> None:
    """Write ``docs/zoo.md`` and ``docs/zoo.html`` beside ``docs/zoo.json``; ``document`` are its contents, if read."""
    document = json.loads(results.read_text()) if document is None else document
    _write_tables(document, results.with_suffix(".md"))
    write_page(results.with_suffix(".html"), search_page(document))


def search_page(document: dict[str, Any]) -> str:
    """A page with a row for every class and a field to search them; it needs no network."""
    rows: dict[str, dict[str, Any]] = document["rows"]
    suites = [
        {"name": name, **{key: sum(r["verdict"] in verdicts for k, r in rows.items() if k.startswith(f"{name}/"))
                          for key, verdicts in (("passed", ("pass",)), ("built", ("pass", "fail")))}}
        for name in sorted({key.split("/")[0] for key in rows})
    ]  # fmt: skip
    environment = template("base.html.jinja").environment
    page = environment.from_string(_TEMPLATE.read_text())
    return page.render(
        title="Does it work for my model?", suites=suites, rows=[_found(*item) for item in sorted(rows.items())]
    )


def _found(key: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row of a class on the page."""
    suite, group, name = key.split("/", 2)
    numbers = [row[column] for column in ("forward", "conservation", "role_defect")]
    remark = "; ".join(filter(None, [row["reason"], row.get("note", "")]))
    shown = ["" if number is None else f"{number:.0e}" if number else "0" for number in numbers]
    return {"suite": suite, "group": group, "name": name, "verdict": row["verdict"], "numbers": shown, "remark": remark}


def _write_tables(document: dict[str, Any], path: Path) -> None:
    """Write ``docs/zoo.md`` from the contents of ``docs/zoo.json``."""
    rows: dict[str, dict[str, Any]] = document["rows"]
    versions = "; ".join(
        f"{suite}: " + ", ".join(f"{k} {v}" for k, v in packages.items())
        for suite, packages in sorted(document["versions"].items())
    )
    suites = sorted({key.split("/")[0] for key in rows})
    page = [_HEAD.format(versions=versions, days=_days(document)), _summary(rows, suites)]
    if "broken" in document:
        page.append(_broken(document["broken"]))
    if "lowered" in document:
        page.append(_lowered(document["lowered"]))
    further: dict[str, dict[str, Any]] = document.get("further", {})
    if further:
        page.append(_further(further))
    if "gradient" in document:
        page.append(_gradient(document["gradient"]))
    page += [_failures(rows), *(_table(rows, further, suite) for suite in suites)]
    write_text(path, "\n".join(page))


def _days(document: dict[str, Any]) -> str:
    """Of each check, how many rows ran on which day."""
    lines = []
    for section, name in SECTIONS.items():
        ran = Counter(row.get("ran", "before").split()[0] for row in document.get(section, {}).values())
        lines += [f"{name}: " + ", ".join(f"{n} {day}" for day, n in sorted(ran.items()))] if ran else []
    return "; ".join(lines)


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


FURTHER = ("one_sample", "longer", "longest", "gradient", "half")
_FURTHER = """## Other sizes, autograd, half precision

By `tools/zoo --further`, with weights that bfloat16 holds. *One sample*: in float64, of a model captured at two samples and ten tokens,
the outputs against the model's own and relevance against a fresh conversion's, to 1e-6. *Longer*: the same at 70 tokens, or at an image
or a sound that is half as large again; *longest*: at 130 tokens, or a wider image. *Gradient*: relevance under `rules="gradient"` against
autograd's input x gradient, to {gradient:g} (models that compute norms in float32 differ by that much from their double-precision
twin), or to what float32 rounds away of the explained value. *Half*: relevance under `attnlrp` in bfloat16 against float64, correlation at least {correlation} and sums within {sum:.0%} of the sum of magnitudes;
where the model's own gradient differs as much (a router that decides otherwise), it says so. How many were tried, and how many hold:
"""


def _further(rows: dict[str, dict[str, Any]]) -> str:
    """Per suite: columns tried and passed, failures, and reasons of columns that were not tried."""
    lines = [
        _FURTHER.format(gradient=GRADIENT, correlation=CORRELATION, sum=SUM),
        "| suite | rows | pass | " + " | ".join(c.replace("_", " ") for c in FURTHER) + " |",
        "|---|--:|--:|" + "--:|" * len(FURTHER),
    ]
    for suite in sorted({key.split("/")[0] for key in rows}):
        mine = [r for k, r in rows.items() if k.startswith(suite + "/") and r["verdict"] != "not buildable"]
        cells = []
        for column in FURTHER:
            shown = [_cell(r, column) for r in mine]
            tried = [c for c in shown if c and not c.startswith("not")]
            cells.append(f"{sum(c.startswith('ok') for c in tried)} of {len(tried)}")
        passed = sum(r["verdict"] == "pass" for r in mine)
        lines.append(f"| {suite} | {len(mine)} | {passed} | " + " | ".join(cells) + " |")
    lines += ["", *_reasons({k: r for k, r in rows.items() if r["verdict"] not in ("not buildable", "pass")}), ""]
    reasons: Counter[tuple[str, str]] = Counter()
    for row in rows.values():
        reasons.update((c.replace("_", " "), _kind(why)) for c, why in row.get("untried", {}).items())
    lines += ["Not tried:", ""]
    lines += [f"- {column}: {why} ({count})" for (column, why), count in sorted(reasons.items(), key=lambda kv: -kv[1])]
    return "\n".join(lines) + "\n"


_GRADIENT = """## Against autograd

By `tools/zoo --gradient`: in float64, relevance of a random projection of the whole output under `rules="gradient"` against autograd's input x
gradient on the model itself, to {gradient:g}. This finds what sums cannot: a graph that does not follow the model, and what a model's author
detached. *Detaches*: models that hold a signal constant somewhere (`detach`, `no_grad`); *seen through*: where all of an output is.
"""


def _gradient(rows: dict[str, dict[str, Any]]) -> str:
    """Per suite: models that agree with autograd, failures, and reasons of models that were not tried."""
    lines = [
        _GRADIENT.format(gradient=GRADIENT),
        "| suite | tried | agree | detaches | seen through |",
        "|---|--:|--:|--:|--:|",
    ]
    for suite in sorted({key.split("/")[0] for key in rows}):
        mine = [r for k, r in rows.items() if k.startswith(suite + "/")]
        tried = [r for r in mine if r["verdict"] not in ("not buildable", "not tried")]
        counts = [sum(bool(r.get(name)) for r in tried) for name in ("detached", "seen_through")]
        agree = sum(r["verdict"] == "pass" for r in tried)
        lines.append(f"| {suite} | {len(tried)} | {agree} | " + " | ".join(map(str, counts)) + " |")
    failing = {k: r for k, r in rows.items() if r["verdict"] not in ("not buildable", "not tried")}
    lines += ["", *_reasons(failing), ""]
    reasons = Counter(_kind(r["reason"]) for r in rows.values() if r["verdict"] == "not tried")
    lines += [f"- not tried: {why} ({count})" for why, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def _kind(why: str) -> str:
    """A reason without the parts that differ between models."""
    return why.split(" (")[0].replace("|", "/")


def _cell(row: Mapping[str, Any] | None, column: str) -> str:
    """ "ok", a number, the reason of a failure, or "" if the row has no such column."""
    if row is None or row["verdict"] == "not buildable":
        return ""
    if column in row.get("untried", {}):
        return f"not: {_kind(row['untried'][column])}"
    if column == "half":
        if row.get("half_correlation") is None:
            return ""
        good = row["half_correlation"] >= CORRELATION and row["half_sum"] <= SUM
        return "ok" if good else f"{row['half_correlation']:.2f}, sum {row['half_sum']:.0%}"
    value = row.get(column)
    if value is None:
        failed = f"{column}: " in row["reason"]
        return "fails" if failed else ""
    return "ok" if value <= (GRADIENT if column == "gradient" else 1e-6) else f"{value:.0e}"


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


def _table(rows: dict[str, dict[str, Any]], further: dict[str, dict[str, Any]], suite: str) -> str:
    more = FURTHER if any(key.startswith(suite + "/") for key in further) else ()
    titles = ("class", "verdict", "nodes", "capture s", "route", "forward", "cp_lrp", "literals", "attnlrp, worst node")
    lines = [
        f"## {suite}\n",
        "| " + " | ".join([*titles, *(c.replace("_", " ") for c in more), "roles"]) + " |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|" + "---|" * len(more) + "---|",
    ]
    for key, row in sorted(rows.items()):
        if not key.startswith(suite + "/") or row["verdict"] == "not buildable":
            continue
        roles = ", ".join(f"{role} {count}" for role, count in sorted(row["roles"].items(), key=lambda kv: -kv[1]))
        numbers = [row["forward"], row["conservation"], row["literals"], row["role_defect"]]
        shown = ["" if n is None else f"{n:.0e}" if n else "0" for n in numbers]
        shown += [_cell(further.get(key), column) for column in more]
        lines.append(
            f"| {key.partition('/')[2]} | {row['verdict']} | {row['nodes']} | {row['capture_seconds']} | {row['route']} "
            f"| {' | '.join(shown)} | {roles} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/zoo.json"))
