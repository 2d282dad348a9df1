"""docs/faithfulness.md from the results of the faithfulness study."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import captum
import pandas as pd
import torch
import transformers
from columns import COLUMNS, PLANTED

from lrp_fx.evaluate import Results

#: what stands above the table of a metric
ABOUT = {
    "abpc": "Area between the perturbation curves, in units of the explained logit: mean over ten steps of the value with the least "
    "relevant features taken away minus that with the most relevant taken away. Higher is better; 95% percentile bootstrap "
    "intervals over samples (2,000 resamples). Best of each column in bold.",
    "loo": "Leave-one-out rank correlation: Spearman correlation of relevance with the drop of the logit when one feature is taken "
    "away. `leave_one_out` is that drop, computed a second time; it is 1 by definition.",
    "top1": "Share of samples whose most relevant feature is an annotated one.",
    "iou": "Intersection over union of the k most relevant features with the k annotated ones.",
    "share": "Share of the explained logit that the input's features get; the rest is that of biases and other parameters.",
    "gap": "|sum of relevance - (f(x) - f(all features taken away))|, of the methods that promise 0.",
    "randomised 100%": "Randomisation (Adebayo et al.): Spearman correlation of |relevance| before and after all parameters were drawn anew, on "
    "24 samples. Near 0 is good.",
}
DIFFERENCES = ("integrated_gradients", "kernel_shap")


def write_report(results: Results, path: Path) -> None:
    """Write the tables of all that was found."""
    summary, cost = results.summary(), results.cost
    columns = [c for c in COLUMNS if c in set(cost["task"])]
    counts = cost.groupby("task")["samples"].max()
    lines = [
        "# Faithfulness",
        "",
        f"Written by `tools/faithfulness` on {time.strftime('%Y-%m-%d')}: torch {torch.__version__}, transformers {transformers.__version__}, captum "
        f"{captum.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}, float32. Rows are methods (rule sets by the name of their file in `rules/`), "
        "columns are models with samples to explain:",
        "",
        *[f"- **{c}** ({counts[c]} samples): {_first_line(COLUMNS[c].__doc__)}" for c in columns],
        "",
        *_about_methods(cost),
    ]
    lines += ["", "## ABPC", "", ABOUT["abpc"], "", *_table(summary, cost, "abpc", columns, interval=True)]
    lines += [
        "",
        "### Where AttnLRP stands",
        "",
        *[_standing(summary, c) for c in columns if ("attnlrp" in _methods(summary, c, "abpc"))],
    ]
    lines += [
        "",
        "## Cost",
        "",
        "Milliseconds per explanation: median over batches, the first use (capture and rewriting) left out. Other work ran beside.",
        "",
    ]
    lines += _cost_table(cost, columns)
    annotated = [c for c in columns if _methods(summary, c, "top1")]
    for metric in ("top1", "iou"):
        title = {"top1": "Annotated and planted truth: top-1", "iou": "Annotated and planted truth: IoU"}[metric]
        planted = f" Planted: {', '.join(c for c in annotated if c in PLANTED)}." if annotated else ""
        lines += ["", f"## {title}", "", ABOUT[metric] + planted, "", *_table(summary, cost, metric, annotated)]
    for metric, title in (
        ("loo", "Leave-one-out correlation"),
        ("share", "Completeness"),
        ("randomised 100%", "Randomisation"),
    ):
        lines += ["", f"## {title}", "", ABOUT[metric], "", *_table(summary, cost, metric, columns)]
        if metric == "share":
            lines += ["", ABOUT["gap"], "", *_table(summary, cost, "gap", columns, only=DIFFERENCES)]
    path.write_text("\n".join(lines) + "\n")


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").strip()


def _methods(summary: pd.DataFrame, task: str, metric: str) -> list[str]:
    if (task, metric) not in summary.index.droplevel("method"):
        return []
    return list(summary.loc[(task, metric)].index)


def _about_methods(cost: pd.DataFrame) -> list[str]:
    full = cost.groupby("task")["samples"].transform("max")
    fewer = cost[(cost["samples"] > 0) & (cost["samples"] < full)]
    limits = [f"`{m}` on {int(g['samples'].max())}" for m, g in fewer.groupby("method", sort=False)]
    about = "A dash: the method does not apply to the model (Grad-CAM without feature maps, rollout without attention)."
    return [about + (f" On fewer samples, for their cost: {', '.join(limits)}." if limits else "")]


def _table(
    summary: pd.DataFrame,
    cost: pd.DataFrame,
    metric: str,
    columns: list[str],
    interval: bool = False,
    only: tuple[str, ...] = (),
) -> list[str]:
    best = {c: summary.loc[(c, metric)]["mean"].max() for c in columns if _methods(summary, c, metric)}
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for method in dict.fromkeys(cost["method"]):
        cells = []
        for c in columns:
            key = (c, metric, method)
            if key not in summary.index or (only and method not in only):
                cells.append("-")
                continue
            mean, low, high = summary.loc[key, ["mean", "low", "high"]]
            shown = f"{mean:.3g}" if metric == "gap" else f"{mean:.2f}"
            shown = f"**{shown}**" if metric in ("abpc", "top1", "iou") and mean == best[c] else shown
            cells.append(f"{shown} ({low:.2f} to {high:.2f})" if interval else shown)
        if any(cell != "-" for cell in cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _cost_table(cost: pd.DataFrame, columns: list[str]) -> list[str]:
    pivot = 1000 * cost.pivot_table(index="method", columns="task", values="seconds", sort=False)
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for method, row in pivot.iterrows():
        cells = ["-" if pd.isna(row.get(c)) else f"{row[c]:.3g}" for c in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _standing(summary: pd.DataFrame, task: str) -> str:
    rows = summary.loc[(task, "abpc")].sort_values("mean", ascending=False)
    own = rows.loc["attnlrp"]
    place = list(rows.index).index("attnlrp") + 1
    above = [f"`{m}` ({r['mean']:.2f})" for m, r in rows.iterrows() if r["low"] > own["high"]]
    level = [
        f"`{m}`" for m, r in rows.iterrows() if m != "attnlrp" and r["low"] <= own["high"] and r["high"] >= own["low"]
    ]
    beaten = (
        f"above it, intervals apart: {', '.join(above)}" if above else "no method is above it with its interval apart"
    )
    return f"- **{task}**: place {place} of {len(rows)} ({own['mean']:.2f}); {beaten}; intervals overlap with {', '.join(level) or 'none'}."
