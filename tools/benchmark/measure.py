"""Measurements, one process each; every function returns JSON data."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrp_fx
from benchmark import contenders
from benchmark.cases import Case, llama, make
from benchmark.contenders import Explainers, Run

TARGETS = 16
NEW_TOKENS, PROMPT = 64, 64
LARGE = ("llama-4096", "llama-7b")  #: decomposed attention, as in other tools, does not fit into memory


def interleaved(runs: Mapping[str, Run], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each function; they take turns, after one warm-up run each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            _synchronise(device)
            start = time.perf_counter()
            run()
            _synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def times(name: str, device: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Every contender on one case."""
    case = make(name, device, dtype)
    ours = Explainers(case)
    runs: dict[str, Run] = {
        "forward": contenders.forward(case),
        "gradient": contenders.gradient(case),
        "eager": ours.eager(),
        "lowered": ours.lowered(),
        "compiled": ours.compiled(),
        "compiled forward": contenders.compiled_forward(case),
    }
    maps: dict[str, Any] = {n: runs[n]() for n in ("eager", "lowered", "compiled")}
    scale = maps["eager"].abs().max()
    apart = {n: float((maps[n] - maps["eager"]).abs().max() / scale) for n in ("lowered", "compiled")}
    seconds = interleaved(runs, repeats, device)
    others, refused = _others(name, case, device)
    return {"seconds": seconds | others, "made": ours.seconds, "refused": refused, "apart": apart, "repeats": repeats}


def _others(name: str, case: Case, device: str) -> tuple[dict[str, float], dict[str, str]]:
    """Other tools on the same case, three runs each: seconds, or the reason of a failure."""
    seconds, refused = {}, {}
    others = {"autolrp": contenders.autolrp} if name not in LARGE else {}
    others |= {"zennit": contenders.zennit} if name == "resnet" else {}
    for other, build in others.items():
        try:
            seconds |= interleaved({other: build(case)}, 3, device)
        except Exception as error:  # another tool's failure is a result
            refused[other] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return seconds, refused


def against_lxt(name: str, device: str, dtype: str, repeats: int, path: str) -> dict[str, Any]:
    """LXT from its source at ``path``, in units of the plain gradient before its patches."""
    sys.path.insert(0, path)
    case = make(name, device, dtype)
    plain = interleaved({"gradient": contenders.gradient(case)}, repeats, device)["gradient"]
    patched = interleaved({"lxt": contenders.lxt(case)}, repeats, device)["lxt"]
    return {"ratio": patched / plain}


def memory(name: str, device: str, dtype: str, contender: str) -> dict[str, Any]:
    """Peak memory of one contender above the process's memory before, in MiB."""
    case = make(name, device, dtype)
    if contender in ("forward", "gradient"):
        run = getattr(contenders, contender)(case)
    else:
        run = getattr(Explainers(case), contender)()
    run()  # warm-up: costs of the first call do not count
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return {"peak": (torch.cuda.max_memory_allocated() - before) / 2**20}
    gc.collect()  # (isolated() lets freed memory go back to the system at once)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = _status("VmRSS")
    run()
    return {"peak": (_status("VmHWM") - before) / 1024}


def _status(field: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)]
    return int(line.split()[1])


def many(device: str, dtype: str, repeats: int) -> dict[str, Any]:
    """16 targets against one."""
    case = make("llama-512", device, dtype)
    inputs = {"input_ids": case.inputs["input_ids"]}
    xmodel, checkpointed = (lrp_fx.convert(case.model, **i) for i in (inputs, case.inputs))
    last = inputs["input_ids"].shape[1] - 1
    spread = [((last + 1) * (i + 1) // TARGETS - 1, 100 * i) for i in range(TARGETS)]
    runs: dict[str, Callable[[], Any]] = {
        "one": lambda: xmodel.explain(**inputs, target=(last, 5)),
        "one, of the logits of one position": lambda: checkpointed.explain(**case.inputs, target=5),
        "16 tokens at one position": lambda: xmodel.explain_targets(
            **inputs, targets=[(last, 100 * i) for i in range(TARGETS)]
        ),
        "16 positions": lambda: xmodel.explain_targets(**inputs, targets=spread),
    }
    return {"seconds": interleaved(runs, repeats, device)}


def generated(name: str, device: str, dtype: str) -> dict[str, Any]:
    """Generated tokens explained together against one forward and backward pass for each."""
    case = make(name, device, dtype)
    prompt = case.inputs["input_ids"][:, :PROMPT]
    xmodel = lrp_fx.convert(case.model, input_ids=case.inputs["input_ids"])
    xmodel.explain_generation(prompt, max_new_tokens=NEW_TOKENS)

    def generate() -> Tensor:
        return case.model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)  # type: ignore[operator]

    def one_by_one(**how: int) -> None:
        ids = generate()
        for end in range(PROMPT, ids.shape[1]):
            embeds = case.model.get_input_embeddings()(ids[:, :end]).detach().requires_grad_()  # type: ignore[operator]
            logits = case.model(inputs_embeds=embeds, **how).logits[0, -1]
            logits[ids[0, end]].backward()

    runs: dict[str, Callable[[], Any]] = {
        "generation": generate,
        "one by one": lambda: one_by_one(logits_to_keep=1),
        "one by one, all logits": one_by_one,
        "explain_generation": lambda: xmodel.explain_generation(prompt, max_new_tokens=NEW_TOKENS),
    }
    return {"seconds": interleaved(runs, 3, device)}


def specialization() -> dict[str, Any]:
    """Seconds to convert a 7B-shaped model without weights."""
    with torch.device("meta"):
        case = llama(32, 4096, 16)
    start = time.perf_counter()
    lrp_fx.convert(case.model, input_ids=torch.zeros(2, 16, dtype=torch.long, device="meta"))
    return {"seconds": time.perf_counter() - start}


def compile_depth(layers: int, per_block: bool) -> dict[str, Any]:
    """Seconds of ``compile`` and its first call for a number of layers, without caches of earlier processes."""
    case = llama(layers, 256, 64, 1000)
    xmodel = lrp_fx.convert(case.model, **case.inputs)
    start = time.perf_counter()
    lowered = xmodel.lower(**case.inputs)
    lowering = time.perf_counter() - start
    lowered.compile(per_block=per_block)(**case.inputs)
    return {"lowering": lowering, "compiling": time.perf_counter() - start - lowering}


def start(compiled: bool) -> dict[str, Any]:
    """Seconds from ``convert`` to the first relevance of Llama 8 x 512; a second process finds the cache warm."""
    case = make("llama-512", "cpu", "float32")
    begin = time.perf_counter()
    xmodel = lrp_fx.convert(case.model, **case.inputs)
    converted = time.perf_counter() - begin
    if compiled:
        xmodel.compile(**case.inputs)(**case.inputs)
    else:
        xmodel.explain(**case.inputs)
    return {"convert": converted, "total": time.perf_counter() - begin}


def isolated(call: str, arguments: dict[str, Any], fresh: bool = False, cache: str | None = None) -> dict[str, Any]:
    """Call a function of this module in a process of its own.

    Args:
        call: its name.
        arguments: its arguments.
        fresh: run without caches of compiled code.
        cache: folder for lrp_fx's cache and that of compiled code.
    """
    with tempfile.TemporaryDirectory() as empty:
        environment = dict(os.environ) | {"MALLOC_MMAP_THRESHOLD_": "131072"} if call == "memory" else dict(os.environ)
        if cache is not None:
            environment |= {"LRP_FX_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        elif fresh:
            environment |= {"TORCHINDUCTOR_CACHE_DIR": empty}
        code = (
            "import json, sys, warnings; warnings.simplefilter('ignore')\n"
            "from benchmark import measure\n"
            "import transformers; transformers.logging.set_verbosity_error()\n"
            f"print('\\n' + json.dumps(getattr(measure, {call!r})(**json.loads(sys.argv[1]))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, env=environment
        )
    if done.returncode:
        raise RuntimeError(f"{call}({arguments}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
