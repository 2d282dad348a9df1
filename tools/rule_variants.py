"""Which rules should be the default? Measures every combination of AttnLRP's and CP-LRP's rules: docs/default_rules.md.

The rules for products of two signals, for gates and for softmax are crossed. Each combination is measured on every column
of the faithfulness study by ABPC and by rank correlation with leave-one-out (the measure by which arXiv:2510.18810 prefers
CP-LRP), and on the spellings of `tests/capture/test_spelling.py` by how far relevance depends on how a function is written.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "capture")]

import torch
import transformers
from columns import COLUMNS, PLANTED
from rich.console import Console
from rich.progress import track
from test_spelling import SPELLINGS, D, Net

import lrp_fx
from lrp_fx import RuleSet
from lrp_fx.evaluate import Results, evaluate, lrp
from lrp_fx.files import write_text

RULES = {
    "softmax": ("taylor", "stop"),
    "gate": ("uniform", "signal-takes-all"),
    "bilinear": ("uniform", "gradient"),
}
KNOWN = {("taylor", "uniform", "uniform"): "attnlrp", ("stop", "signal-takes-all", "uniform"): "cp_lrp"}
KNOWN[("stop", "uniform", "uniform")] = "relp"

WITHOUT = ("cnn", "photos", "digits")  # nets without softmax, gates and products: there all variants are one


def variants() -> dict[str, RuleSet]:
    """Every combination, named by its rules."""
    base = RuleSet.load("attnlrp")
    sets = {}
    for chosen in itertools.product(*RULES.values()):
        name = ", ".join(chosen) + (f" ({KNOWN[chosen]})" if chosen in KNOWN else "")
        sets[name] = base.altered(dict(zip(RULES, chosen, strict=True)), name=name)
    return sets


def dependence_on_spelling(rulesets: dict[str, RuleSet], console: Console) -> dict[str, float]:
    """Largest difference of relevance between two spellings of a function, relative to the largest relevance."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    worst = dict.fromkeys(rulesets, 0.0)
    for spellings in track(SPELLINGS.values(), description="spellings", console=console):
        maps = []
        for function in spellings:
            xmodel = lrp_fx.convert(Net(function), x)
            maps.append([xmodel.explain(x, target=1, rules=r).relevance["x"] for r in rulesets.values()])
        for name, first_one, *others in zip(rulesets, *maps, strict=True):
            differences = [float((first_one - o).abs().max() / first_one.abs().max()) for o in others]
            worst[name] = max(worst[name], *differences)
    return worst


def write(results: Results, spelling: dict[str, float], path: Path) -> None:
    """The page: a row per variant, two numbers per column."""
    summary = results.summary()
    columns = list(dict.fromkeys(results.cost["task"]))
    lines = [
        "# The default rules",
        "",
        f"Written by `tools/default_rules` on {time.strftime('%Y-%m-%d')} (torch {torch.__version__}, transformers {transformers.__version__}). Rows are",
        "the rules for softmax, for gates and for products of two signals, in this order; everything else is as in `attnlrp`. 95% bootstrap intervals.",
    ]
    for metric, title in (("abpc", "ABPC"), ("loo", "Rank correlation with leave-one-out")):
        lines += [
            "",
            f"## {title}",
            "",
            f"| softmax, gate, bilinear | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        best = {c: summary.loc[c, metric]["mean"].idxmax() for c in columns}
        for name in spelling:
            cells = []
            for column in columns:
                row = summary.loc[(column, metric, name)]
                value = f"{row['mean']:.2f}"
                value = f"**{value}**" if best[column] == name else value
                cells.append(f"{value} [{row['low']:.2f}, {row['high']:.2f}]")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Mean rank over the columns (1 is best)",
        "",
        "| softmax, gate, bilinear | ABPC | leave-one-out | dependence on spelling |",
        "|---|---|---|---|",
    ]
    means = results.values.groupby(["metric", "task", "method"])["value"].mean()
    ranks = {m: means[m].unstack().rank(axis=1, ascending=False).mean() for m in ("abpc", "loo")}
    for name in spelling:
        lines.append(f"| {name} | {ranks['abpc'][name]:.2f} | {ranks['loo'][name]:.2f} | {spelling[name]:.0e} |")
    write_text(path, "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ",".join(c for c in COLUMNS if c not in (*PLANTED, *WITHOUT))
    parser.add_argument("--columns", default=default, help="comma-separated")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--results", type=Path, default=Path(".models/variants"))
    parser.add_argument("--report", type=Path, default=Path("docs/default_rules.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    console, rulesets = Console(stderr=True), variants()
    rows = []
    for name in options.columns.split(","):
        folder = options.results / name
        if not (folder / "cost.csv").is_file():
            task = COLUMNS[name]().part(slice(0, options.samples), name)
            methods = [lrp(ruleset) for ruleset in rulesets.values()]
            evaluate(task, methods, ("abpc", "loo"), batch=options.batch).save(folder)
        rows.append(Results.load(folder))
    spelling = dependence_on_spelling(rulesets, console)
    write(Results.concat(rows), spelling, options.report)
    console.print(f"{options.report} is written")


if __name__ == "__main__":
    main()
