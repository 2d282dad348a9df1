"""Identity of a column of the faithfulness study: hashes of its samples and of its model's weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import RuleSetError
from lrp_fx.evaluate import Results, Task
from lrp_fx.files import write_text
from lrp_fx.rules.ruleset import RuleSet

RECORD = "record.json"


def _digest(values: Iterable[tuple[str, Any]]) -> str:
    """Twelve hexadecimal digits of names and values; of tensors type, shape and bytes."""
    total = hashlib.sha256()
    for name, value in values:
        total.update(name.encode())
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()[:12]


@dataclass(frozen=True)
class Identity:
    """Validity of a column's results.

    Attributes:
        samples: hash of inputs, targets, features and labels.
        weights: hash of parameters and buffers.
        seed: of the samples.
    """

    samples: str
    weights: str
    seed: int

    @classmethod
    def of(cls, task: Task, seed: int) -> Identity:
        """The identity of a task with samples drawn under a seed."""
        target = task.target if isinstance(task.target, tuple) else (task.target,)
        labels = {"eligible": task.eligible, "annotated": task.annotated, "blank": task.blank}
        samples = [*sorted(task.inputs.items()), *((f"target {i}", t) for i, t in enumerate(target)), *labels.items()]
        state = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
        return cls(_digest([*samples, ("features", task.features)]), _digest(sorted(state.items())), seed)

    def folder(self, results: Path, column: str) -> Path:
        """Folder of a column's results; other samples or weights have another folder."""
        return results / column / f"{self.samples}-{self.weights}"


def rule_keys(methods: Iterable[str]) -> dict[str, str]:
    """Hash of the rule set of every method with one; a changed rule set counts as another method."""
    keys = {}
    for name in methods:
        with contextlib.suppress(RuleSetError):
            keys[name] = _digest([("rules", RuleSet.load(name).key)])
    return keys


def load(folder: Path) -> Results | None:
    """The results in a folder, without those of changed rule sets; None without results."""
    if not (folder / RECORD).is_file():
        return None
    results, before = Results.load(folder), read(folder)["rules"]
    now = rule_keys(before)
    stale = [name for name, key in before.items() if now.get(name) != key]
    tables = (results.values, results.curves, results.cost)
    return Results(*(table[~table["method"].isin(stale)].reset_index(drop=True) for table in tables))


def save(results: Results, identity: Identity, folder: Path) -> None:
    """Save results, and last the record, which marks them complete."""
    results.save(folder)
    record = {
        "samples": int(results.cost["samples"].max()),
        "seed": identity.seed,
        "samples hash": identity.samples,
        "weights hash": identity.weights,
        "rules": rule_keys(dict.fromkeys(results.cost["method"])),
        "measured": time.strftime("%Y-%m-%d"),
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The record of a folder."""
    return json.loads((folder / RECORD).read_text())


def latest(results: Path, column: str) -> Path | None:
    """The folder of a column's latest results."""
    records = sorted((results / column).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime_ns)
    return records[-1].parent if records else None
