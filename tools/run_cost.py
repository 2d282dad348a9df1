"""What a run over a data set costs: beside the model's own gradient in the same batches, and beside a loop of `explain`.

PYTHONPATH=tools python tools/run_cost.py FILE                      # a text per line; time on the clock, torch's own threads
PYTHONPATH=tools python tools/run_cost.py FILE --cpu --threads 1    # processor time, for a busy machine
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrp_fx
from lrp_fx.cli.demo import load_demo
from lrp_fx.runs.batching import batches
from lrp_fx.runs.columns import KINDS

RULES = "attnlrp"
EVERY = 16  #: the loop explains one text of so many


def seconds_of(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def gradients(model: nn.Module, encoded: Sequence[dict[str, torch.Tensor]]) -> None:
    """Forward pass of every batch, and the gradient of its largest logits with respect to the embeddings."""
    table = model.get_submodule("encoder.embeddings.word_embeddings").weight
    for inputs in encoded:
        torch.autograd.grad(model(**inputs).amax(-1).sum(), table)


def main(file: Path, rounds: int, threads: int | None, cpu: bool) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    clock = time.process_time if cpu else time.perf_counter
    model, tools, labels = load_demo("sentiment")
    texts, tokenizer = file.read_text().splitlines(), tools["tokenizer"]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    grouped = batches(lengths, KINDS["text"].limits)
    encoded = [dict(tokenizer([texts[i] for i in one], padding=True, return_tensors="pt")) for one in grouped]
    encoded = [{name: one[name] for name in ("input_ids", "attention_mask")} for one in encoded]
    explainer = lrp_fx.Explainer(model, labels=labels, rules=RULES, **tools)
    for text in texts[:3]:  # captured, and checked
        explainer.xmodel.explain(text)
    looped = texts[::EVERY]
    print(
        f"{len(texts)} texts, {sum(lengths) / len(lengths):.0f} tokens in the mean, {len(grouped)} batches; ms a text, "
        f"{'of a processor' if cpu else 'on the clock'}, {torch.get_num_threads()} threads"
    )
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = seconds_of(
                lambda folder=folder: lrp_fx.run(
                    explainer, texts, out=folder, rows_per_shard=len(texts), progress=False
                ), clock
            )  # fmt: skip
        gradient = seconds_of(lambda: gradients(model, encoded), clock)
        loop = seconds_of(lambda: [explainer.xmodel.explain(text) for text in looped], clock)
        run, gradient, loop = 1000 * run / len(texts), 1000 * gradient / len(texts), 1000 * loop / len(looped)
        print(
            f"round {number + 1}: gradient {gradient:.2f}, run {run:.2f} ({run / gradient:.3f} of the gradient), "
            f"loop {loop:.2f} ({loop / run:.3f} of the run)", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own number)")
    parser.add_argument("--cpu", action="store_true", help="processor time in place of time on the clock")
    options = parser.parse_args()
    main(options.file, options.rounds, options.threads, options.cpu)
