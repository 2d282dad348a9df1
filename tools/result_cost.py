"""What results add to an explanation of one short sentence: the engine alone, tensors, and a text, side by side.

PYTHONPATH=. python tools/result_cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

import lrp_fx
from lrp_fx.cli.demo import load_demo

TEXT, ROUNDS = "The plot is a tedious mess, and not even the gifted cast can save it.", 15


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Print medians of interleaved calls, and ratios to the engine alone."""
    torch.set_num_threads(1)
    model, tools, labels = load_demo("sentiment")
    xmodel = lrp_fx.convert(model, **tools, labels=labels)
    inputs = dict(tools["tokenizer"](TEXT, return_tensors="pt"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    specialization, call = xmodel.specialization((), inputs)
    ruleset = xmodel.rule_set(None)
    calls = {
        "engine": lambda: specialization.explain(ruleset, (), call, None, [{}], False, False),
        "tensors": lambda: xmodel.explain(**inputs, check=False),
        "tensors, keep_inputs=False": lambda: xmodel.explain(**inputs, check=False, keep_inputs=False),
        "text": lambda: xmodel.explain(TEXT, check=False),
    }
    for one in calls.values():
        one()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, one in calls.items():
            times[name].append(seconds(one))
    for name, listed in times.items():
        ratios = [mine / base for mine, base in zip(listed, times["engine"], strict=True)]
        print(f"{name}: {1000 * median(listed):.1f} ms of processor time, {median(ratios):.3f} x the engine")


if __name__ == "__main__":
    main()
