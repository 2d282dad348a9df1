"""Cost of offloading: peak memory and time of an explanation with weights in memory and on disk (needs accelerate).

A LLaMA-shaped model of 16 layers of width 1024 (float32, random weights). Each row is a fresh process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as tf

import lrp_fx

ROWS = {"in memory": ("cpu", "normal"), "in memory, memory=low": ("cpu", "low"), "on disk": ("disk", "normal")}
ROWS["on disk, memory=low"] = ("disk", "low")


def save(folder: Path, layers: int, width: int) -> None:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=8192,
    )
    tf.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(folder: Path, place: str, memory: str, length: int) -> dict[str, float]:
    """Peak memory beyond that of the imports, and the median time of three explanations."""
    torch.set_num_threads(1)
    tf.logging.disable_progress_bar()
    before = peak()
    model = tf.AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": place}, offload_folder=folder / "offloaded", dtype=torch.float32
    ).eval()
    ids = torch.arange(length)[None] * 31 % 8000
    xmodel = lrp_fx.convert(model, input_ids=ids)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        attribution = xmodel.explain(input_ids=ids, target=7, memory=memory)
        times.append(time.perf_counter() - start)
    relevance = attribution.relevance["input_ids"].double()
    return {"peak": peak() - before, "seconds": statistics.median(times), "sum": float(relevance.abs().sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row == "save":  # in a process of its own: a child starts with the peak of the process that started it
        return save(options.folder, options.layers, options.width)
    if options.row:
        return print(json.dumps(row(options.folder, *ROWS[options.row], options.length)))
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"--{name}={getattr(options, name)}" for name in ("layers", "width", "length")]

        def run(name: str) -> str:
            command = [sys.executable, __file__, "--row", name, "--folder", folder, *sizes]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        run("save")
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 2**20
        print(f"{options.layers} x {options.width}, {options.length} tokens; weights {size:.0f} MB, one thread")
        print(f"{'weights':24}{'peak MB':>9}{'seconds':>9}   sum of absolute relevance")
        for name in ROWS:
            measured = json.loads(run(name).splitlines()[-1])
            print(f"{name:24}{measured['peak']:9.0f}{measured['seconds']:9.2f}   {measured['sum']:.9f}")


if __name__ == "__main__":
    main()
