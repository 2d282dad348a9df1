"""Time from convert to the first relevance in fresh processes, without and with LRP_FX_CACHE."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median


def measured(layers: int, compiled: bool) -> dict[str, float]:
    """Seconds of imports, of convert, of lowering (with --compile) and of the first explanation in this process."""
    start = time.perf_counter()
    import torch
    import transformers

    import lrp_fx

    imported = time.perf_counter()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=8000,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 7999, (1, 64))
    loaded = time.perf_counter()
    xmodel = lrp_fx.convert(model, input_ids=ids)
    converted = time.perf_counter()
    if compiled:
        xmodel.compile(input_ids=ids)
    lowered = time.perf_counter()
    xmodel.explain(input_ids=ids)
    end = time.perf_counter()
    return {
        "imports": imported - start,
        "convert": converted - loaded,
        "lower": lowered - converted,
        "explain": end - lowered,
        "together": end - loaded,
        "with imports": end - loaded + imported - start,
    }


def in_fresh_process(asked: argparse.Namespace, folder: str, code: str) -> dict[str, float]:
    """Measurements of a new process with this cache folder ("" for none), and this folder of compiled code."""
    command = [sys.executable, "-W", "ignore", __file__, "--layers", str(asked.layers), "--child"]
    command += ["--compiled"] * asked.compiled
    environment = dict(os.environ, LRP_FX_CACHE=folder, TORCHINDUCTOR_CACHE_DIR=code)
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print one row without a cache and one from cache hits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="compile, too; compiled code is in PyTorch's own cache")
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.layers, asked.compiled)))
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as code:
        in_fresh_process(asked, folder, code)
        rows: dict[str, list[dict[str, float]]] = {"captured": [], "from the cache": []}
        for _ in range(asked.runs):
            rows["captured"].append(in_fresh_process(asked, "", code))
            rows["from the cache"].append(in_fresh_process(asked, folder, code))
    for name, times in rows.items():
        print(name, {k: round(median(row[k] for row in times), 2) for k in times[0]})


if __name__ == "__main__":
    main()
