"""docs/faithfulness.md from the summary of the faithfulness study."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import captum
import pandas as pd
import torch
import transformers
from columns import COLUMNS, PLANTED
from faithfulness_summary import BASE, Column

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
JUDGED = (
    "The default was chosen by these measures over all columns: mean rank among the rule sets that fit any model; never below AttnLRP by more "
    "than the interval of the difference; within 15% of the best of them in four fifths of the columns; at most 2.5 times AttnLRP's time."
)
COST = (
    "Processor time per explanation in units of AttnLRP's in the same run; below, AttnLRP's in milliseconds. One thread, median over "
    "batches of 25, the first use (capture and rewriting) left out. Rows of one column may be of different days."
)
BUDGETS = (
    "SmoothGrad takes 16 noisy copies, Integrated Gradients 20 points, KernelSHAP 128 coalitions, leave-one-out and AtMan a pass per feature. "
    "Gradient and SmoothGrad are norms and have no sign. Integrated Gradients starts from the sample with all features taken away."
)
RULE_SETS = ("default", "attnlrp", "cp_lrp", "relp", "vit_gamma", "epsilon_plus")  #: that fit any model
DIFFERENCES = ("integrated_gradients", "kernel_shap")


def write_report(columns: Mapping[str, Column], path: Path) -> None:
    """Write the tables of all columns."""
    table = Table({name: columns[name] for name in COLUMNS if name in columns})
    annotated = table.having("top1")
    planted = f" Planted truth: {', '.join(c for c in annotated if c in PLANTED)}."
    sections = [
        ("ABPC", ABOUT["abpc"], table.of("abpc", interval=True)),
        ("The default rules", DEFAULT, table.default()),
        ("Where AttnLRP stands", STANDS, table.standing()),
        ("Cost", COST, table.prices()),
        ("Annotated and planted truth: top-1", ABOUT["top1"] + planted, table.of("top1")),
        ("Annotated and planted truth: IoU", ABOUT["iou"] + planted, table.of("iou")),
        ("Positive relevance on the truth", ABOUT["inside"], table.of("inside")),
        ("Positive relevance on what holds nothing", ABOUT["blank"], table.of("blank")),
        ("Leave-one-out correlation", ABOUT["loo"], table.of("loo")),
        ("Share of the explained value", ABOUT["share"], table.of("share")),
        ("Completeness of differences", ABOUT["gap"], table.of("gap", only=DIFFERENCES)),
        ("Randomisation", ABOUT["randomised 100%"], table.of("randomised 100%")),
    ]
    lines = _head(table.columns)
    for title, about, body in sections:
        if body:
            lines += ["", f"## {title}", "", about, "", *body]
    write_text(path, "\n".join(lines) + "\n")


def _head(columns: Mapping[str, Column]) -> list[str]:
    return [
        "# Faithfulness",
        "",
        f"Written by `tools/faithfulness` on {time.strftime('%Y-%m-%d')}: torch {torch.__version__}, transformers {transformers.__version__}, captum "
        f"{captum.__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, float32. Rows are methods (rule sets by "
        "the name of their file in `rules/`, baselines by their name in `lrp_fx.evaluate.METHODS`), columns are models with samples to explain. All means, "
        "intervals and dates are in [faithfulness.json](faithfulness.json):",
        "",
        *[f"- **{c}** ({_measured_on(column)}): {_first_line(COLUMNS[c].__doc__)}" for c, column in columns.items()],
        "",
        BUDGETS,
        "",
        "A dash: the method does not apply to the model (Grad-CAM without feature maps, rollout without attention), or was left out on that column for "
        "its cost.",
    ]


def _measured_on(column: Column) -> str:
    record, dates = column["record"], sorted({row["measured"] for row in column["methods"].values()})
    hashed = record["weights hash"] is not None
    hashes = (
        f"`{record['samples hash']}`, weights `{record['weights hash']}`"
        if hashed
        else "whose hashes were not recorded"
    )
    return f"{record['samples']} samples {hashes}, {' and '.join(dates)}"


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").strip()


class Table:
    """The tables of some columns."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = columns
        present = dict.fromkeys(m for column in columns.values() for m in column["methods"])
        self.methods = [*(m for m in RULE_SETS if m in present), *(m for m in present if m not in RULE_SETS)]

    def mean(self, column: str, method: str, metric: str) -> float | None:
        """Mean of a metric; None where it was not measured."""
        row = self.columns[column]["methods"].get(method)
        return row["metrics"][metric][0] if row and metric in row["metrics"] else None

    def having(self, metric: str) -> list[str]:
        """The columns where any method has this metric."""
        return [c for c in self.columns if any(self.mean(c, m, metric) is not None for m in self.methods)]

    def of(self, metric: str, interval: bool = False, only: Sequence[str] = ()) -> list[str]:
        """Methods by columns; the best of each column in bold where more is better."""
        columns, lines = self.having(metric), []
        for method in only or self.methods:
            cells = [self._cell(c, method, metric, interval) for c in columns]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {method} | {' | '.join(cells)} |")
        return [*_heads(columns), *lines] if lines else []

    def _cell(self, column: str, method: str, metric: str, interval: bool) -> str:
        mean = self.mean(column, method, metric)
        if mean is None:
            return "-"
        best = max(v for m in self.methods if (v := self.mean(column, m, metric)) is not None)
        text = f"{mean:.3g}" if metric == "gap" else f"{mean:.2f}"
        if metric in ("abpc", "top1", "iou", "inside") and mean == best:
            text = f"**{text}**"
        if not interval:
            return text
        _, low, high = self.columns[column]["methods"][method]["metrics"][metric]
        return f"{text} ({low:.2f} to {high:.2f})"

    def prices(self) -> list[str]:
        """Prices of all methods in units of AttnLRP's, and AttnLRP's milliseconds."""
        lines = _heads(list(self.columns))
        for method in (m for m in self.methods if m != BASE):
            rows = [column["methods"].get(method, {}) for column in self.columns.values()]
            cells = ["-" if row.get("price") is None else f"{row['price']:.3g}" for row in rows]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        spent = [column["methods"].get(BASE, {}).get("milliseconds") for column in self.columns.values()]
        return [*lines, f"| {BASE}, ms | {' | '.join('-' if ms is None else f'{ms:.3g}' for ms in spent)} |"]

    def default(self) -> list[str]:
        """A row per column, and the judgement over all of them."""
        columns = [c for c in self.columns if {"default", BASE} <= set(self.columns[c]["methods"])]
        if not columns:
            return []
        lines = [
            "| column | default | attnlrp | difference | best rule set | of the best | cost, of attnlrp's |",
            "|---|--:|--:|---|---|--:|--:|",
        ]
        means = pd.DataFrame({c: {m: self.mean(c, m, "abpc") for m in RULE_SETS} for c in columns}, dtype=float)
        prices, below = {}, []
        for c in columns:
            row, best = self.columns[c]["methods"]["default"], means[c].idxmax()
            gap, low, high = row["difference"]
            below += [c] if high < 0 else []
            prices[c] = row["price"]
            cells = [c, f"{means[c]['default']:.2f}", f"{means[c][BASE]:.2f}", f"{gap:+.2f} ({low:.2f} to {high:.2f})"]
            cells += [
                f"`{best}` {means[c][best]:.2f}",
                f"{means[c]['default'] / means[c][best]:.2f}",
                f"{prices[c]:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        ranks = means.rank(ascending=False).mean(axis=1).sort_values()
        far = [c for c in columns if means[c]["default"] < 0.85 * means[c].max()]
        ranking = ", ".join(f"`{m}` {rank:.2f}" for m, rank in ranks.items())
        return [
            *lines,
            "",
            JUDGED,
            "",
            f"- Mean rank over {len(columns)} columns: {ranking}.",
            f"- Below AttnLRP by more than the interval: {', '.join(below) or 'nowhere'}.",
            f"- Within 15% of the best rule set: {len(columns) - len(far)} of {len(columns)} columns; not {', '.join(far) or 'any'}."
            if far
            else f"- Within 15% of the best rule set: all {len(columns)} columns.",
            f"- Cost: {min(prices.values()):.2f} to {max(prices.values()):.2f} of AttnLRP's.",
        ]

    def standing(self) -> list[str]:
        """AttnLRP's place in every column, and the methods that are better and level."""
        lines = []
        for name, column in self.columns.items():
            if BASE not in column["methods"]:
                continue
            rows = {m: row for m, row in column["methods"].items() if "abpc" in row["metrics"]}
            order = sorted(rows, key=lambda m: -rows[m]["metrics"]["abpc"][0])
            better = [f"`{m}` ({_signed(rows[m]['difference'])})" for m in order if _stands(rows[m]) == "better"]
            level = [f"`{m}`" for m in order if m != BASE and _stands(rows[m]) == "level"]
            lines.append(
                f"- **{name}**: place {order.index(BASE) + 1} of {len(order)}. Better: {', '.join(better) or 'none'}. "
                f"Level: {', '.join(level) or 'none'}."
            )
        return lines


def _heads(columns: Sequence[str]) -> list[str]:
    return ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]


def _stands(row: Mapping[str, Any]) -> str:
    """Whether a method is better than AttnLRP, level or worse; rows of before this was saved have the word only."""
    if row["difference"] is None:
        return row.get("standing", "")
    _, low, high = row["difference"]
    return "better" if low > 0 else "worse" if high < 0 else "level"


def _signed(difference: Sequence[float]) -> str:
    return f"{difference[0]:+.2f}, {difference[1]:.2f} to {difference[2]:.2f}"
