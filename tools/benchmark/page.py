"""docs/performance.md from the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.cases import ABOUT, CASES, ON_GPU
from benchmark.results import Results
from lrp_fx.files import replacing, write_text
from lrp_fx.viz.colours import CATEGORIES, hexadecimal, ink

COLUMNS = ("forward", "gradient", "eager", "lowered", "compiled")
COLOURS = dict(zip(("eager", "lowered", "compiled"), map(hexadecimal, CATEGORIES[::3]), strict=True))


def write(results: Path, report: Path) -> None:
    """The page, and a plot beside it."""
    lines = ["# Performance", "", *_PREAMBLE]
    for device in ("cpu", "cuda"):
        stored = Results(results, device)
        if measured := stored.read():
            lines += _device(device, measured, stored.settings(), report)
    write_text(report, "\n".join(lines) + "\n")


_PREAMBLE = (
    "Written by `tools/bench`. One row is one process; in it the contenders take turns and the medians of seven are compared (of three at 4096 tokens, and for other tools). "
    "*Gradient* is input x gradient by plain eager autograd, weights without gradients. Every contender explains the largest logit at the last position; language models "
    "compute that position's logits alone, on all sides. *Bound* is twice the compiled forward pass.",
    "",
)


def _device(device: str, measured: dict[str, Any], settings: list[str], report: Path) -> list[str]:
    names = list(ON_GPU if device == "cuda" else CASES)
    rows = {k: measured[f"times {k}"] for k in _rows(names) if f"times {k}" in measured}
    lines = [
        f"## {'GPU' if device == 'cuda' else 'CPU'}",
        "",
        "Measured on (performance.json says which row when):",
        "",
        *(f"- {setting}" for setting in settings),
        "",
    ]
    if rows:
        lines += _times(rows, measured.get("lxt")) + _plot(rows, device, report)
    lines += _memory(measured, names) + _many(measured) + _preparation(rows, measured)
    return lines


def _rows(names: list[str]) -> list[str]:
    return [f"{n} {d}" for d in ("float32", "bfloat16") for n in names]


def _title(row: str) -> str:
    name, dtype = row.rsplit(" ", 1)
    return ABOUT[name] + ("" if dtype == "float32" else f", {dtype}")


def _times(rows: dict[str, Any], lxt: dict[str, Any] | None) -> list[str]:
    lines = [
        "### Time of one explanation",
        "",
        "Milliseconds; in brackets, in units of the gradient.",
        "",
    ]
    table = {}
    for row, measured in rows.items():
        s = {name: 1e3 * seconds for name, seconds in measured["seconds"].items()}
        bound, apart = s["compiled"] / (2 * s["compiled forward"]), max(measured["apart"].values())
        table[_title(row)] = [_against(s, c) for c in COLUMNS] + [f"{bound:.2f}", f"{apart:.0e}"]
        table[_title(row)] += [_against(s, other) for other in ("autolrp", "zennit")]
    columns = "forward | gradient | `explain` | `lower` | `compile`"
    lines += _table(f"{columns} | compiled, of the bound | agreement | autoLRP | zennit", table)
    lines += [
        "",
        "*Agreement* is the largest difference of lowered or compiled to eager relevance, in units of the largest relevance. ReLU networks with "
        "random weights amplify rounding: eager relevance of this ResNet-50 in float32 differs from that in float64 by 2e-02. zennit was tried on "
        "the convolutional network alone; autoLRP not at 4096 tokens, where attention written out does not fit into memory.",
    ]
    if lxt is not None:
        lines += [
            f"LXT (`lxt.efficient`) on Llama, 8 x 512, 512 tokens: {lxt['ratio']:.2f} of the gradient, in a process of its own."
        ]
    refused = {other: why for measured in rows.values() for other, why in measured["refused"].items()}
    lines += [f"A dash: {other} does not explain it (`{why}`)." for other, why in refused.items()]
    return [*lines, ""]


def _against(values: Mapping[str, float | None], name: str) -> str:
    """A value, and in brackets its multiple of the gradient."""
    value, base = values.get(name), values.get("gradient")
    if value is None:
        return "-"
    return f"{value:.0f}" if name == "gradient" or not base else f"{value:.0f} ({value / base:.2f})"


def _table(head: str, rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table with a row for every model, numbers to the right."""
    lines = [f"| model | {head} |", "|---|" + "--:|" * (head.count("|") + 1)]
    return lines + [f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items()]


def _plot(rows: dict[str, Any], device: str, report: Path) -> list[str]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "performance"  # the same file each time
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    for i, (name, colour) in enumerate(COLOURS.items()):
        values = [f["seconds"][name] / f["seconds"]["gradient"] for f in rows.values()]
        axes.barh([y + (1 - i) * 0.25 for y in range(len(rows))], values, 0.24, color=colour, label=name)
    bounds = [2 * f["seconds"]["compiled forward"] / f["seconds"]["gradient"] for f in rows.values()]
    axes.plot(bounds, range(len(rows)), "|", color=ink("ink"), markersize=22, label="bound")
    axes.axvline(1, color=ink("ink"), linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_title(r) for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("time of one explanation, in units of the plain gradient")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    path = report.with_name(f"performance-{device}.svg")
    with replacing(path) as beside:
        figure.savefig(beside, metadata={"Date": None})
    return [f"![time by model]({path.name})", ""]


def _memory(measured: dict[str, Any], names: list[str]) -> list[str]:
    kinds = ("gradient", "eager", "low", "lowered", "compiled")
    table = {n: {k: measured.get(f"memory {n} {k}", {}).get("peak") for k in kinds} for n in [*names, "llama-32x512"]}
    table = {n: row for n, row in table.items() if any(v is not None for v in row.values())}
    if not table:
        return []
    lines = [
        "### Peak memory",
        "",
        "MiB above what the process holds between explanations, a fresh process each; in brackets, of the gradient's.",
        "",
    ]
    cells = {ABOUT[name]: [_against(row, kind) for kind in kinds] for name, row in table.items()}
    lines += _table('gradient | `explain` | `memory="low"` | `lower` | `compile`', cells)
    short, long = table.get("llama-2048"), table.get("llama-4096")
    if short and long:
        grown = [f"{k} {long[k] / short[k]:.2f}" for k in kinds if short.get(k) and long.get(k)]
        lines += ["", f"From 2048 to 4096 tokens memory grows by: {', '.join(grown)}."]
    return [*lines, ""]


def _many(measured: dict[str, Any]) -> list[str]:
    if "many" not in measured:
        return []
    s = measured["many"]["seconds"]
    few = "one, of the logits of one position"
    lines = [
        "### Many targets",
        "",
        f"Llama-like, 8 x 512, 512 tokens; in units of one `explain` ({s['one']:.2f} s), and of one where the model computes the logits "
        f"of the explained position alone ({s[few]:.2f} s).",
        "",
    ]
    lines += [
        f"- {name}: {s[name]:.2f} s, {s[name] / s['one']:.1f} x ({s[name] / s[few]:.1f} x)."
        for name in s
        if name.startswith("16")
    ]
    lines += _generated(measured)
    return [*lines, ""]


def _generated(measured: dict[str, Any]) -> list[str]:
    rows = {
        tuple(job.split()[1:]): result["seconds"] for job, result in measured.items() if job.startswith("generated ")
    }
    if not rows:
        return []
    lines = [
        "",
        "64 tokens generated after a prompt of 64 and explained, in seconds: by `explain_generation`; by generating, then one forward and "
        "one backward pass for each token, of the logits of its position alone, or of all logits, as models compute them unless they are "
        "told otherwise. Generating is part of each. (64 forward and 64 backward passes against four and 64: where matrix products take the "
        "time, and they are at their peak, that is 2 x.)",
        "",
    ]
    cells = {}
    for (name, dtype), s in sorted(rows.items(), reverse=True):
        alone, ours, *apart = (
            s[k] for k in ("generation", "explain_generation", "one by one", "one by one, all logits")
        )
        ratios = [f"{a / ours:.1f} ({(a - alone) / (ours - alone):.1f})" for a in apart]
        cells[f"{ABOUT[name]}, {dtype}"] = [f"{x:.2f}" for x in (alone, ours, *apart)] + ratios
    head = "generating | `explain_generation` | one by one | the same, all logits | times as long (without generating) | all logits"
    return lines + _table(head, cells)


def _preparation(rows: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    lines = ["### Preparation", ""]
    if rows:
        preparations = {_title(row): result["made"] for row, result in rows.items()}
        cells = {title: [f"{taken[k]:.1f}" for k in ("convert", "lower")] for title, taken in preparations.items()}
        lines += [*_table("convert, s | lower, s", cells), ""]
    if "conversion" in measured:
        lines += [f"- A 7B-shaped Llama (32 x 4096, on meta): converted in {measured['conversion']['seconds']:.1f} s."]
    for per_block, title in ((False, "`compile(per_block=False)`"), (True, "`compile()`")):
        few, lots = (measured.get(f"compile {n} {per_block}") for n in (8, 32))
        if few and lots:
            ratio = lots["compiling"] / few["compiling"]
            lines.append(
                f"- {title} without any cache, of 8 and 32 layers 256 wide: {few['compiling']:.0f} s and {lots['compiling']:.0f} s "
                f"({ratio:.2f} x), after lowering in {few['lowering']:.0f} s and {lots['lowering']:.0f} s."
            )
    if "start" in measured:
        lines += [
            f"- {name}: convert {s['convert']:.1f} s, first relevance after {s['total']:.1f} s (8 x 512, with LRP_FX_CACHE)."
            for name, s in measured["start"].items()
        ]
    return [*lines, ""]
