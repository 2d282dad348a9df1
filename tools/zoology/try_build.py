"""Builds every case of a suite, each in a forked child with a time limit, and prints failures."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from case import Case, NotBuildable

LIMIT_S = 60
SLOW_S = 5.0  # builds that take longer are printed too


def _build(case: Case, pipe: Connection) -> None:
    """In the child: build, and send the outcome."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some packages print while they build
    warnings.simplefilter("ignore")
    began, odd = time.perf_counter(), False
    try:
        built = case.build()
        count = sum(p.numel() for p in built.model.parameters())
        with torch.no_grad():
            output = built.model(*built.args, **built.inputs)
        if built.target is not None:
            output = built.target(output)
            assert output.dim() == 1, f"target gives {tuple(output.shape)}, not (B,)"
        assert isinstance(output, torch.Tensor), f"gives {type(output).__name__} and has no target"
        spread = float(output.std())
        message = f"{count / 1e6:.1f} M parameters, output {tuple(output.shape)}, spread {spread:.2g}"
        state = "built"
        odd = not 1e-3 < spread < 1e3  # relevance of such a model says little in float32
    except NotBuildable as reason:
        message, state = str(reason), "not buildable"
    except BaseException as error:  # any error of the package becomes a row of the table
        message, state = f"{type(error).__name__}: {error}", "error"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send((state, f"{message} ({peak:.1f} GiB)", time.perf_counter() - began, odd))


def try_all(cases: list[Case], only: str | None = None) -> int:
    """Build each case whose key contains `only`; returns the number of unforeseen failures."""
    context: Any = multiprocessing.get_context("fork")
    keys = [case.key for case in cases]
    assert len(keys) == len(set(keys)), f"repeated: {sorted(k for k in keys if keys.count(k) > 1)}"
    counts = {"built": 0, "not buildable": 0, "error": 0}
    for case in cases:
        if only is not None and only not in case.key:
            continue
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_build, args=(case, send))
        child.start()
        send.close()
        state, message, seconds, odd = "error", f"no answer in {LIMIT_S} s", float(LIMIT_S), False
        if receive.poll(LIMIT_S):
            try:
                state, message, seconds, odd = receive.recv()
            except EOFError:
                message = "the child died"
        child.kill()
        child.join()
        counts[state] += 1
        if state != "built" or odd or seconds > SLOW_S or only is not None:
            print(f"{state:13} {seconds:5.1f} s  {case.key}: {message[:400]}", flush=True)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return counts["error"]
