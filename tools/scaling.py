"""Processor time of capture, analysis, plan and rewrite by depth: a Llama of 8, 16, 32 and 64 layers on the meta device.

python tools/scaling.py --report docs/scaling.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
import transformers as tf

from lrp_fx.analysis import analyse
from lrp_fx.capture import capture
from lrp_fx.files import write_text
from lrp_fx.operators.table import OpTable
from lrp_fx.plan import make_plan
from lrp_fx.rewrite import rewrite
from lrp_fx.rules.ruleset import RuleSet

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def measure(layers: int) -> tuple[int, list[float]]:
    """Number of nodes; seconds of capture, analysis, plan and rewrite."""
    config = tf.LlamaConfig(num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config).eval()
        ids = torch.zeros(2, 16, dtype=torch.long)
    captured, exporting = timed(lambda: capture(model, (), {"input_ids": ids}))
    graph = captured.graph_module.graph
    facts, analysing = timed(lambda: analyse(graph, OpTable.load()))
    plan, planning = timed(lambda: make_plan(graph, facts, RuleSet.load("attnlrp")))
    _, rewriting = timed(lambda: rewrite(captured, plan))
    return len(graph.nodes), [exporting, analysing, planning, rewriting]


def row(layers: int, repeats: int) -> str:
    """One row: layers, nodes, seconds of every stage in its fastest run, microseconds of analysis to rewrite per node."""
    runs = [measure(layers) for _ in range(repeats)]
    seconds = [min(stage) for stage in zip(*(run for _, run in runs), strict=True)]
    nodes, together = runs[0][0], sum(seconds[1:])
    cells = [str(layers), str(nodes), *(f"{s:.3f}" for s in (*seconds, together)), f"{1e6 * together / nodes:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("docs/scaling.md"))
    parser.add_argument("--layers", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measure(2)  # warm: imports and caches
    lines = [
        "# Conversion by depth\n",
        f"LLaMA, 4096 wide, on the meta device; seconds of processor time, the fastest of {options.repeats} runs. `python tools/scaling.py` on {date.today()}, "
        f"torch {torch.__version__}, transformers {tf.__version__}.\n",
        "| layers | nodes | capture | analysis | plan | rewrite | analysis to rewrite | per node, µs |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for layers in options.layers:
        lines.append(row(layers, options.repeats))
        print(lines[-1], flush=True)
    write_text(options.report, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
