"""docs/faithfulness.md from the results of the faithfulness study."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import captum
import pandas as pd
import torch
import transformers
from columns import COLUMNS, PLANTED

from lrp_fx.evaluate import Results
from lrp_fx.files import write_text

#: text above the table of a metric
ABOUT = {
    "abpc": "Area between the perturbation curves, in units of the explained logit: mean over ten steps (five for lm, moe, qa, sentiment, reactions, mapper, microbes and photos) of the value with the least "
    "relevant features taken away minus that with the most relevant taken away. Higher is better; 95% percentile bootstrap "
    "intervals over samples (2,000 resamples). Best of each column in bold.",
    "loo": "Leave-one-out rank correlation: Spearman correlation of relevance with the drop of the logit when one feature is taken "
    "away. `leave_one_out` is that drop, computed a second time; it is 1 by definition.",
    "top1": "Share of samples whose most relevant feature is an annotated one.",
    "iou": "Intersection over union of the k most relevant features with the k annotated ones.",
    "inside": "Share of all positive relevance that annotated features have. Higher is better.",
    "blank": "Share of all positive relevance that features have which are known to hold nothing: white paper, silence before speech. Lower is better.",
    "share": "Share of the explained logit that the input's features get; the rest is that of biases and other parameters.",
    "gap": "|sum of relevance - (f(x) - f(all features taken away))|, of the methods that promise 0.",
    "randomised 100%": "Randomisation (Adebayo et al.): Spearman correlation of |relevance| before and after all parameters were drawn anew, on "
    "16 samples. Near 0 is good.",
}
DEFAULT = (
    "`convert(model)` uses `rules/default.toml`. Its ABPC beside AttnLRP's on the same samples, beside the best of the rule sets that "
    "fit any model (no tuning), and its price in processor time."
)
STANDS = (
    "Differences of ABPC to AttnLRP on the same samples, with 95% bootstrap intervals: methods whose interval lies above 0 are better, "
    "those whose interval holds 0 are level, all others are worse."
)
COST = "Milliseconds of processor time per explanation on one thread: median over batches of 25, the first use (capture and rewriting) left out."
BUDGETS = (
    "SmoothGrad takes 16 noisy copies, Integrated Gradients 20 points, KernelSHAP 128 coalitions, leave-one-out and AtMan a pass per feature. "
    "Gradient and SmoothGrad are norms and have no sign. Integrated Gradients starts from the sample with all features taken away."
)
RULE_SETS = ("default", "attnlrp", "cp_lrp", "relp", "vit_gamma", "epsilon_plus")  #: that fit any model
DIFFERENCES = ("integrated_gradients", "kernel_shap")


def write_report(results: Results, records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the tables of all results; ``records`` describe the samples and models of the columns."""
    summary, cost = results.summary().sort_index(), results.cost
    columns = [c for c in COLUMNS if c in set(cost["task"])]
    annotated = [c for c in columns if _methods(summary, c, "top1")]
    planted = f" Planted truth: {', '.join(c for c in annotated if c in PLANTED)}."

    def table(metric: str, shown: list[str] = columns, **options: Any) -> list[str]:
        return _table(summary, cost, metric, shown, **options)

    sections = [
        ("ABPC", ABOUT["abpc"], table("abpc", interval=True)),
        ("The default rules", DEFAULT, _default(results, summary, columns)),
        ("Where AttnLRP stands", STANDS, _standing(results, summary, columns)),
        ("Cost", COST, _cost_table(cost, columns)),
        ("Annotated and planted truth: top-1", ABOUT["top1"] + planted, table("top1", annotated)),
        ("Annotated and planted truth: IoU", ABOUT["iou"] + planted, table("iou", annotated)),
        ("Positive relevance on the truth", ABOUT["inside"], table("inside", annotated)),
        ("Positive relevance on what holds nothing", ABOUT["blank"], table("blank", annotated)),
        ("Leave-one-out correlation", ABOUT["loo"], table("loo")),
        ("Share of the explained value", ABOUT["share"], table("share")),
        ("Completeness of differences", ABOUT["gap"], table("gap", only=DIFFERENCES)),
        ("Randomisation", ABOUT["randomised 100%"], table("randomised 100%")),
    ]
    lines = [*_head(cost, columns, records)]
    for title, about, body in sections:
        if body:
            lines += ["", f"## {title}", "", about, "", *body]
    write_text(path, "\n".join(lines) + "\n")


def _head(cost: pd.DataFrame, columns: list[str], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    counts = cost.groupby("task")["samples"].max()
    return [
        "# Faithfulness",
        "",
        f"Written by `tools/faithfulness` on {time.strftime('%Y-%m-%d')}: torch {torch.__version__}, transformers {transformers.__version__}, captum "
        f"{captum.__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, float32. Rows are methods (rule sets by "
        "the name of their file in `rules/`, baselines by their name in `lrp_fx.evaluate.METHODS`), columns are models with samples to explain:",
        "",
        *[f"- **{c}** ({_measured_on(counts[c], records[c])}): {_first_line(COLUMNS[c].__doc__)}" for c in columns],
        "",
        *_about_methods(cost),
    ]


def _measured_on(count: int, record: Mapping[str, Any]) -> str:
    return f"{count} samples `{record['samples hash']}` by seed {record['seed']}, weights `{record['weights hash']}`"


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
    about = "A dash: the method does not apply to the model (Grad-CAM without feature maps, rollout without attention), or was left out on that column for its cost."
    return [BUDGETS, "", about + (f" On fewer samples, for their cost: {', '.join(limits)}." if limits else "")]


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
    empty = len(lines)
    for method in dict.fromkeys(cost["method"]):
        cells = []
        for c in columns:
            key = (c, metric, method)
            if key not in summary.index or (only and method not in only):
                cells.append("-")
                continue
            mean, low, high = summary.loc[key, ["mean", "low", "high"]]
            shown = f"{mean:.3g}" if metric == "gap" else f"{mean:.2f}"
            shown = f"**{shown}**" if metric in ("abpc", "top1", "iou", "inside") and mean == best[c] else shown
            cells.append(f"{shown} ({low:.2f} to {high:.2f})" if interval else shown)
        if any(cell != "-" for cell in cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines if len(lines) > empty else []


def _cost_table(cost: pd.DataFrame, columns: list[str]) -> list[str]:
    pivot = 1000 * cost.pivot_table(index="method", columns="task", values="processor", sort=False)
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for method, row in pivot.iterrows():
        cells = ["-" if pd.isna(row.get(c)) else f"{row[c]:.3g}" for c in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _default(results: Results, summary: pd.DataFrame, columns: list[str]) -> list[str]:
    """A row per column, and the mean ranks of the rule sets."""
    columns = [c for c in columns if {"default", "attnlrp"} <= set(_methods(summary, c, "abpc"))]
    if not columns:
        return []
    paired, cost = results.against("attnlrp"), results.cost.set_index(["task", "method"])["processor"]
    means = summary.xs("abpc", level="metric")["mean"].unstack("task")
    means = means.loc[[m for m in RULE_SETS if m in means.index], columns]
    lines = [
        "| column | default | attnlrp | difference | best rule set | of the best | cost, of attnlrp's |",
        "|---|--:|--:|---|---|--:|--:|",
    ]
    for c in columns:
        gap, best = paired.loc[c, "default"], means[c].idxmax()
        cells = [c, f"{means[c]['default']:.2f}", f"{means[c]['attnlrp']:.2f}"]
        cells += [f"{gap['mean']:+.2f} ({gap['low']:.2f} to {gap['high']:.2f})", f"`{best}` {means[c][best]:.2f}"]
        cells += [f"{means[c]['default'] / means[c][best]:.2f}", f"{cost[c, 'default'] / cost[c, 'attnlrp']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ranks = means.rank(ascending=False).mean(axis=1).sort_values()
    near = int((means.loc["default"] >= 0.85 * means.max()).sum())
    ranking = ", ".join(f"`{m}` {rank:.2f}" for m, rank in ranks.items())
    return [*lines, "", f"Mean rank: {ranking}. Within 15% of the best rule set: {near} of {len(columns)} columns."]


def _standing(results: Results, summary: pd.DataFrame, columns: list[str]) -> list[str]:
    paired = results.against("attnlrp")
    lines = []
    for task in columns:
        if "attnlrp" not in _methods(summary, task, "abpc"):
            continue
        rows = summary.loc[(task, "abpc")].sort_values("mean", ascending=False)
        place = list(rows.index).index("attnlrp") + 1
        above = [(m, r) for m, r in paired.loc[task].sort_values("mean", ascending=False).iterrows() if r["low"] > 0]
        level = [f"`{m}`" for m, r in paired.loc[task].iterrows() if r["low"] <= 0 <= r["high"]]
        better = ", ".join(f"`{m}` (+{r['mean']:.2f}, {r['low']:.2f} to {r['high']:.2f})" for m, r in above)
        lines.append(
            f"- **{task}**: place {place} of {len(rows)}. Better: {better or 'none'}. Level: {', '.join(level) or 'none'}."
        )
    return lines
