"""The faithfulness study: methods by columns, and docs/faithfulness.md.

Results of a column are in .models/faithfulness/COLUMN/HASHES, by the hashes of its samples and of its model's weights: a change
of these invalidates them. Existing methods are not evaluated again, except for changed rule sets. The report shows
docs/faithfulness.json, which has the latest results of each column and method.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import faithfulness_summary
import identity
import torch
import transformers
from columns import COLUMNS, EXTENSIBLE
from columns.weights import SAMPLES, SEED
from faithfulness_report import RULE_SETS, write_report
from rich.console import Console

from lrp_fx.errors import LrpError
from lrp_fx.evaluate import METHODS, Method, Results, Task, Tokens, evaluate, find_methods

COMPOSITES = ("epsilon_alpha2_beta1", "guided_backprop")  # of convolutional networks, on the columns that are such
CONVOLUTIONAL = ("cnn", "photos", "digits", "crnn")
LARGE = ("lm", "moe", "qa", "sentiment", "reactions", "mapper", "microbes", "photos")
STEPS = dict.fromkeys(LARGE, 5)  # a forward pass takes ten times as long
RANDOMISED = 16  # samples of the randomisation test: it explains each five times
METRICS = ("abpc", "deletion", "insertion", "localisation", "shares", "loo", "completeness", "randomisation")
CHEAP = ("kernel_shap", "leave_one_out", "atman", "random", "smoothgrad", "integrated_gradients")  # are not randomised


def default_methods(column: str) -> list[str]:
    """Names of the methods of a column."""
    composites = COMPOSITES if column in CONVOLUTIONAL else ()
    return list(dict.fromkeys([*RULE_SETS, *composites, *METHODS]))


def by_length(task: Task) -> Task:
    """The samples sorted by length, so that batches have little padding."""
    mask = task.inputs.get("attention_mask")
    if mask is None or not isinstance(task.features, Tokens) or mask.shape != task.inputs[task.features.input].shape:
        return task
    features = dataclasses.replace(task.features, mask="attention_mask")
    return dataclasses.replace(task.part(mask.sum(1).argsort(stable=True)), features=features)


def column(
    name: str,
    names: list[str],
    samples: int,
    batch: int,
    steps: int,
    results: Path,
    console: Console,
    metrics: Sequence[str] = METRICS,
) -> None:
    """Evaluate the missing methods on one column, one after another, and save after each."""
    more = (samples,) if name in EXTENSIBLE and samples > SAMPLES else ()
    task = by_length(COLUMNS[name](*more).part(slice(0, samples), name))
    key = identity.Identity.of(task, SEED)
    folder = key.folder(results, name)
    done = identity.load(folder)
    left = [m for m in find_methods(names) if done is None or m.name not in set(done.cost["method"])]
    if not left:
        console.print(f"{name}: done")
        return
    start = time.perf_counter()
    console.print(
        f"{name}: {len(task)} samples, {task.batch(slice(None)).eligible.shape[1]} features, {len(left)} methods"
    )
    on_all = [m for m in metrics if m != "randomisation"]
    measured: list[Results] = [] if done is None else [done]
    try:
        measured.append(evaluate(task, left, on_all, batch=batch, steps=steps))
    except LrpError as error:
        console.print(f"[red]{name}: one by one, after {type(error).__name__}[/]: {error}")
        for method in left:
            try:
                measured.append(evaluate(task, [method], on_all, batch=batch, steps=steps))
            except LrpError as failure:
                console.print(f"[red]{name}: {method.name}[/]: {failure}")
    for method in left if "randomisation" in metrics else ():
        if method.name not in CHEAP and any((k.cost["method"] == method.name).any() for k in measured):
            measured.append(_randomised(task.part(slice(0, RANDOMISED)), method, batch))
    identity.save(Results.concat(measured), key, folder)
    console.print(f"{name}: {time.perf_counter() - start:.0f} s")


def _randomised(task: Task, method: Method, batch: int) -> Results:
    result = evaluate(task, [method], ["randomisation"], batch=batch, progress=False)
    return dataclasses.replace(result, cost=result.cost[:0])  # the cost was measured on more samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", default=",".join(COLUMNS), help="comma-separated")
    parser.add_argument("--methods", help="comma-separated (default: rule sets that fit the column, and all baselines)")
    parser.add_argument(
        "--metrics",
        default=",".join(METRICS),
        help="loo takes a forward pass for every feature, randomisation five conversions",
    )
    parser.add_argument("--samples", type=int, default=200, help="of every column")
    parser.add_argument("--steps", type=int, help="of the perturbation curves (default: 10, 5 for the large models)")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="drop the results of these columns first")
    parser.add_argument("--results", type=Path, default=Path(".models/faithfulness"))
    parser.add_argument("--summary", type=Path, default=Path("docs/faithfulness.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/faithfulness.md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    console = Console(stderr=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in options.columns.split(","):
        folder = options.results / name
        if options.again and folder.is_dir():
            shutil.rmtree(folder)
        names = options.methods.split(",") if options.methods else default_methods(name)
        steps = options.steps or STEPS.get(name, 10)
        metrics = options.metrics.split(",")
        column(name, names, options.samples, options.batch, steps, options.results, console, metrics)
    columns = faithfulness_summary.read(options.summary)
    for name in options.columns.split(","):
        if (folder := identity.latest(options.results, name)) is not None:
            columns[name] = faithfulness_summary.merged(columns.get(name), Results.load(folder), identity.read(folder))
    faithfulness_summary.write({name: columns[name] for name in COLUMNS if name in columns}, options.summary)
    write_report(columns, options.report)
    console.print(f"{options.report} is written")


if __name__ == "__main__":
    main()
