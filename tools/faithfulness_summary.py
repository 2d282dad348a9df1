"""The faithfulness study in one JSON file of the repository: what remains when single samples and weights are gone.

For each column its record (hashes of samples and weights), and for each method when it was measured, on how many samples,
its price, the mean of every metric with a 95% interval, and the difference of ABPC to AttnLRP's on the same samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import identity

from lrp_fx.evaluate import Results
from lrp_fx.files import write_text

BASE = "attnlrp"  #: rule set that others are compared with, sample by sample
HASHES = ("samples hash", "weights hash")
Column = dict[str, Any]


def read(path: Path) -> dict[str, Column]:
    """Column -> its summary; empty without a file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(columns: Mapping[str, Column], path: Path) -> None:
    """A line per method."""
    sentences = []
    for name, column in columns.items():
        methods = ",\n".join(f"  {json.dumps(m)}: {json.dumps(row)}" for m, row in column["methods"].items())
        sentences.append(
            f"{json.dumps(name)}: {{\n {json.dumps('record')}: {json.dumps(column['record'])},\n"
            f" {json.dumps('methods')}: {{\n{methods}\n }}\n}}"
        )
    write_text(path, "{\n" + ",\n".join(sentences) + "\n}\n")


def merged(old: Column | None, results: Results, record: Mapping[str, Any]) -> Column:
    """A column with the methods in ``results``.

    Rows of other samples, weights or rules are dropped, as far as hashes tell. Metrics that were not measured again stay.
    """
    if old is not None and any(old["record"].get(key) not in (None, record[key]) for key in HASHES):
        old = None
    rows = {} if old is None else _of_these_rules(old["methods"])
    for method, row in summarised(results, record["measured"]).items():
        metrics = {**rows.get(method, {}).get("metrics", {}), **row["metrics"]}
        rows[method] = {**row, "metrics": metrics, "rules": record["rules"].get(method)}
    return {"record": {key: v for key, v in record.items() if key not in ("rules", "measured")}, "methods": rows}


def _of_these_rules(rows: Mapping[str, Any]) -> dict[str, Any]:
    keys = identity.rule_keys(rows)
    return {method: row for method, row in rows.items() if row.get("rules") in (None, keys.get(method))}


def summarised(results: Results, date: str) -> dict[str, dict[str, Any]]:
    """Method -> its row, of the results of one column."""
    summary, gaps = results.summary().droplevel("task"), results.against(BASE)
    cost = results.cost[results.cost["samples"] > 0].drop_duplicates("method").set_index("method")
    unit = cost["processor"].get(BASE)
    rows = {}
    for method, price in cost.iterrows():
        means = summary.xs(method, level="method")
        metrics = {metric: _rounded(row[["mean", "low", "high"]]) for metric, row in means.iterrows()}
        gap = gaps.droplevel("task").loc[method] if method in gaps.index.get_level_values("method") else None
        rows[str(method)] = {
            "measured": date,
            "samples": int(price["samples"]),
            "milliseconds": _short(1000 * price["processor"]),
            "price": None if unit is None else _short(price["processor"] / unit),
            "metrics": metrics,
            "difference": None if gap is None else _rounded(gap[["mean", "low", "high"]]),
        }
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _rounded(values: Any) -> list[float]:
    return [_short(v) for v in values]
