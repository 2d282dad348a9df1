"""Cost of pipeline stages: time of one explanation by one process and by two (gloo), in interleaved runs.

A LLaMA-shaped model of 8 layers of width 512 (float32), one thread per process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers as tf

import lrp_fx

MICROBATCHES = (1, 2, 4)


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall time, and of processor time of both processes."""
    dist.barrier()
    start, worked = time.perf_counter(), time.process_time()
    function()
    work = torch.tensor(time.process_time() - worked)
    dist.all_reduce(work)
    return time.perf_counter() - start, float(work)


def process(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, vocab_size=8192
    )
    ids = torch.randint(3, 8000, (options.batch, options.length))
    xmodel = lrp_fx.convert(tf.LlamaForCausalLM(config).eval(), input_ids=ids)
    pipeline = xmodel.pipeline()

    def alone() -> None:
        if rank == 0:
            xmodel.explain(input_ids=ids, target=7)

    rows: dict[str, Callable[[], Any]] = {"one process": alone}
    for pieces in MICROBATCHES:
        rows[f"two, {pieces} micro-batches"] = lambda pieces=pieces: pipeline.explain(
            input_ids=ids, target=7, microbatches=pieces
        )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for turn in range(options.runs + 1):
        for name, function in rows.items():
            measured = timed(function)
            if turn:
                times[name].append(measured)
    if rank == 0:
        print(f"batch {options.batch}, {options.length} tokens, median of {options.runs}")
        for name, runs in times.items():
            passed, worked = (statistics.median(kind) for kind in zip(*runs, strict=True))
            print(f"{name:24}{passed:8.3f} s{worked:8.3f} s of processor time")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (str(Path(folder)), options), nprocs=2)


if __name__ == "__main__":
    main()
