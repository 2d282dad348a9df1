"""`lrp-fx eval`: a task from texts, and a table of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.errors import InputError, LrpError
from lrp_fx.evaluate import Results, Task, Tokens
from lrp_fx.explain.reading import find_logits
from lrp_fx.explain.target import last_positions

#: metric -> heading of its column
SHOWN = {"deletion": "deletion", "insertion": "insertion", "loo": "LOO", "share": "share"}


def text_task(name: str, model: nn.Module, tokenizer: Any, texts: Sequence[str], target: int | None = None) -> Task:
    """A task of a text model: explain its answers to ``texts`` (or class ``target``). Features are tokens that are not
    special; the mask token replaces them, or the unknown, padding or end token if the tokenizer has none.

    Raises:
        InputError: for a text of special tokens alone, and for an encoder-decoder model.
        LrpError: for a text that is too long, and for a tokenizer without any of these tokens.
    """
    if is_encoder_decoder(model):
        raise InputError("an encoder-decoder model needs a task made in Python: see lrp_fx.evaluate.Task")
    named = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    replacement = next((token for token in named if token is not None), None)
    if replacement is None:
        raise LrpError("the tokenizer has no mask, unknown, padding or end token to replace other tokens with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = replacement  # (padding is masked out)
    encoding = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    ids, mask = encoding["input_ids"], encoding["attention_mask"]
    if ids.shape[1] > tokenizer.model_max_length:
        raise LrpError(f"a text has {ids.shape[1]} tokens: give at most {tokenizer.model_max_length}")
    special = torch.tensor([i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id], dtype=ids.dtype)
    eligible = mask.bool() & ~torch.isin(ids, special)
    if not bool(eligible.any(1).all()):
        empty = int((~eligible.any(1)).nonzero()[0])
        raise InputError(f"text {empty + 1} has special tokens only, so no feature can be removed: {texts[empty]!r}")
    inputs = {"input_ids": ids, "attention_mask": mask}
    if target is not None:
        answers = torch.full((len(ids),), target)
    else:
        with torch.no_grad():
            answers = _answers(model(**inputs), mask)
    return Task(name, model, inputs, answers, Tokens(replacement), eligible)


def _answers(output: Any, mask: torch.Tensor) -> torch.Tensor:
    logits = find_logits(output)
    if logits.dim() == 3:
        rows = torch.arange(len(logits))
        logits = logits[rows, last_positions(logits.shape[1], len(logits), {"attention_mask": mask})]
    return logits.argmax(-1)


def parted(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Texts to tune on, and every third one to measure on; no text is in both.

    Raises:
        InputError: for fewer than three texts.
    """
    texts = list(dict.fromkeys(line for line in lines if line.strip()))
    if len(texts) < 3:
        raise InputError(f"{len(texts)} texts cannot be parted: give three at least, better some hundreds")
    return [text for number, text in enumerate(texts) if number % 3 < 2], texts[2::3]


def writable_rules(path: Path) -> None:
    """Check before a long search that its result can be written.

    Raises:
        InputError: for a file of another kind, and for a folder that is not there or cannot be written to.
    """
    if path.suffix != ".toml":
        raise InputError(f"{str(path)!r}: the name of a rule set's file ends in .toml")
    if not os.access(path.resolve().parent, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written: there is no such folder, or it is not yours")


def results_table(results: Results) -> Table:
    """A row per method: ABPC with its 95% interval, means of the other metrics, milliseconds per explanation."""
    summary = results.summary()
    table = Table(box=None, pad_edge=False)
    table.add_column("method", style="dim", no_wrap=True)
    for heading in ("ABPC", "95% interval", *SHOWN.values(), "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results.cost.itertuples():
        keys = {metric: (row.task, metric, row.method) for metric in ("abpc", *SHOWN)}
        means = [f"{summary.loc[key, 'mean']:.3f}" if key in summary.index else "-" for key in keys.values()]
        low, high = summary.loc[keys["abpc"], ["low", "high"]] if row.samples else (None, None)
        interval = f"{low:.3f}, {high:.3f}" if row.samples else "-"
        cost = f"{1000 * row.seconds:.1f}" if row.samples else "-"
        table.add_row(row.method, means[0], interval, *means[1:], cost)
    return table
