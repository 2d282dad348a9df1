"""What do rule sets cost? Processor time of `explain` in units of `attnlrp`'s, side by side in one process; prints a table.

Models have random weights and the shapes of published ones. Calls of the rule sets take turns, so a busy machine slows all of
them; the time is the lower quartile of a rule set's calls.

    python tools/rule_costs.py [--models bert,crnn] [--calls 7] [--lowered]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from training import networks, words

import lrp_fx

Case = tuple[nn.Module, dict[str, torch.Tensor]]


def bert() -> Case:
    """BERT-base, two classes, one sentence of 128 tokens."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    return model, {"input_ids": torch.randint(1000, 20000, (1, 128))}


def vit() -> Case:
    """ViT-B/16, one image of 224 pixels."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(1, 3, 224, 224)}


def resnet() -> Case:
    """ResNet-50, one image of 224 pixels."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(1, 3, 224, 224)}


def crnn() -> Case:
    """The text recogniser of `tools/train`, 16 words."""
    return networks.CRNN(), {"x": torch.randn(16, 1, words.HEIGHT, words.WIDTH)}


MODELS: Mapping[str, Callable[[], Case]] = {"bert": bert, "vit": vit, "resnet": resnet, "crnn": crnn}


def measure(runs: Mapping[str, Callable[[], Any]], calls: int) -> dict[str, float]:
    """Seconds of processor time of each, taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(calls + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:  # the first call captures and plans
                spent[name].append(time.process_time() - start)
    return {name: statistics.quantiles(times, n=4)[0] for name, times in spent.items()}


def runs(name: str, rules: list[str], lowered: bool) -> dict[str, Callable[[], Any]]:
    """Rule set -> a call that explains one target of a model: of a sequence of logits one step."""
    model, inputs = MODELS[name]()
    xmodel = lrp_fx.convert(model.eval())
    target: Any = (10, 3) if name == "crnn" else 1
    if not lowered:
        explain = functools.partial(xmodel.explain, **inputs, target=target, check=False)
        return {rule: functools.partial(explain, rules=rule) for rule in rules}
    graphs = {rule: xmodel.lower(**inputs, target=target, rules=rule) for rule in rules}
    return {rule: functools.partial(graph, **inputs, target=target) for rule, graph in graphs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rules", default="attnlrp,default,vit_gamma,epsilon_plus", help="the first is the unit")
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--lowered", action="store_true", help="lowered graphs in place of explain()")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unit, *others = options.rules.split(",")
    print(f"| model | {unit}, ms | {' | '.join(others)} |")
    print("|---|--:|" + "--:|" * len(others), flush=True)
    for name in options.models.split(","):
        spent = measure(runs(name, [unit, *others], options.lowered), options.calls)
        cells = [f"{spent[rule] / spent[unit]:.2f}" for rule in others]
        about = (MODELS[name].__doc__ or name).rstrip(".")
        print(f"| {about} | {1000 * spent[unit]:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
