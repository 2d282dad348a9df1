"""Time of capture, analysis, plan and rewrite by depth: a Llama of 8, 16, 32 and 64 layers on the meta device.

python tools/scaling.py --report docs/scaling.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
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
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def measure(layers: int) -> list[str]:
    """One row: layers, nodes, seconds of every stage, microseconds of analysis to rewrite per node."""
    config = tf.LlamaConfig(num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config).eval()
        ids = torch.zeros(2, 16, dtype=torch.long)
    captured, exporting = timed(lambda: capture(model, (), {"input_ids": ids}))
    graph = captured.graph_module.graph
    facts, analysing = timed(lambda: analyse(graph, OpTable.load()))
    plan, planning = timed(lambda: make_plan(graph, facts, RuleSet.load("attnlrp")))
    _, rewriting = timed(lambda: rewrite(captured, plan))
    nodes, after_capture = len(graph.nodes), analysing + planning + rewriting
    stages = [f"{seconds:.3f}" for seconds in (exporting, analysing, planning, rewriting, after_capture)]
    return [str(layers), str(nodes), *stages, f"{1e6 * after_capture / nodes:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("docs/scaling.md"))
    parser.add_argument("--layers", type=int, nargs="*", default=[8, 16, 32, 64])
    options = parser.parse_args()
    measure(2)  # warm: imports and caches
    lines = [
        "# Conversion by depth\n",
        f"LLaMA, 4096 wide, on the meta device; seconds. `python tools/scaling.py`, torch {torch.__version__}, "
        f"transformers {tf.__version__}.\n",
        "| layers | nodes | capture | analysis | plan | rewrite | analysis to rewrite | per node, µs |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for layers in options.layers:
        lines.append("| " + " | ".join(measure(layers)) + " |")
        print(lines[-1], flush=True)
    write_text(options.report, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
