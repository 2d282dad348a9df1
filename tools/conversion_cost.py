"""CPU seconds from a model to its first relevance, for models whose loops and depth make that long.

python tools/conversion_cost.py [case ...]; each case in a process of its own, on one thread
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[nn.Module, dict[str, Any]]  #: a model and its example inputs


class Loop(nn.Module):
    """A recurrent cell that Python calls once for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 8)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state)


def ids(length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(1, 49, (1, length))}


def loop(steps: int) -> Case:
    return Loop().eval(), {"x": torch.randn(2, steps, 4)}


def lstm(steps: int) -> Case:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0][:, -1])

    return Last().eval(), {"x": torch.randn(2, steps, 4)}


def rwkv(steps: int) -> Case:
    import transformers as tf

    config = tf.RwkvConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, context_length=512, attention_hidden_size=16,
        intermediate_size=32,
    )  # fmt: skip
    return tf.RwkvForCausalLM(config).eval(), ids(steps)


def mamba(steps: int) -> Case:
    import transformers as tf

    config = tf.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=8, use_cache=False)
    return tf.MambaForCausalLM(config).eval(), ids(steps)


def mamba2(steps: int) -> Case:
    import transformers as tf

    config = tf.Mamba2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=8, n_groups=2,
        chunk_size=64, use_cache=False,
    )  # fmt: skip
    return tf.Mamba2ForCausalLM(config).eval(), ids(steps)


def qwen(layers: int) -> Case:
    import transformers as tf

    kinds = [("full_attention" if i % 4 == 3 else "linear_attention") for i in range(layers)]
    config = tf.Qwen3NextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, linear_num_value_heads=2, linear_num_key_heads=1, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=0, layer_types=kinds, use_cache=False, mlp_only_layers=[*range(layers)],
    )  # fmt: skip
    return tf.Qwen3NextForCausalLM(config).eval(), ids(10)


def llama(layers: int) -> Case:
    import transformers as tf

    config = tf.LlamaConfig(num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        return tf.LlamaForCausalLM(config).eval(), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


def mixtral(layers: int) -> Case:
    import transformers as tf

    config = tf.MixtralConfig(num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        return tf.MixtralForCausalLM(config).eval(), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


def deepseek(layers: int) -> Case:
    import transformers as tf

    config = tf.DeepseekV3Config(num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        return tf.DeepseekV3ForCausalLM(config).eval(), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


#: name -> (what makes the model, steps or layers)
CASES: dict[str, tuple[Callable[[int], Case], int]] = {
    "loop": (loop, 200),
    "lstm": (lstm, 200),
    "rwkv": (rwkv, 128),
    "mamba": (mamba, 256),
    "mamba2": (mamba2, 256),
    "qwen": (qwen, 1),
    "qwen-12": (qwen, 12),
    "llama": (llama, 32),
    "llama-96": (llama, 96),
    "mixtral": (mixtral, 32),
    "deepseek": (deepseek, 60),
}


def measured(name: str, size: int | None) -> str:
    """One row: seconds until the conversion stands, of the first and of the second explanation, nodes."""
    import lrp_fx

    torch.manual_seed(0)
    torch.set_num_threads(1)
    make, usual = CASES[name]
    model, inputs = make(size or usual)
    warm = lrp_fx.convert(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)))
    warm.explain(torch.randn(2, 3))
    times = [time.process_time()]
    converted = lrp_fx.convert(model, **inputs)
    times.append(time.process_time())
    for _ in range(2 if next(model.parameters()).device.type != "meta" else 0):
        converted.explain(**inputs)
        times.append(time.process_time())
    nodes = len(converted.graph_module.graph.nodes)
    seconds = [f"{after - before:.2f}" for before, after in itertools.pairwise(times)]
    return " | ".join([name, str(size or usual), *seconds, *["-"] * (3 - len(seconds)), str(nodes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--size", type=int, help="steps or layers, where they shall be others")
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        print(measured(options.cases[0], options.size))
        return
    print("case | size | convert | first explain | second explain | nodes")
    for name in options.cases or CASES:
        command = [sys.executable, "-W", "ignore", __file__, name, "--child"]
        command += ["--size", str(options.size)] if options.size else []
        run = subprocess.run(command, capture_output=True, text=True)
        lines = run.stdout.strip().splitlines() or [f"{name} failed: {run.stderr.strip().splitlines()[-1]}"]
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
