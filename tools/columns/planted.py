"""Columns with planted truth: the answer depends on the annotated tokens and on the question, which is the last token.

Tokens that are the same in every sample (the start token, the question) are not eligible and not annotated: explanations have
to find the tokens that answer the question. Only samples with a right answer are used.
"""

from __future__ import annotations

import torch
import transformers
from training import planted

from columns import weights
from lrp_fx.evaluate.task import Task, Tokens


def _task(name: str, length: int, samples: int) -> Task:
    model = weights.load(name, transformers.LlamaForCausalLM)
    generator = torch.Generator().manual_seed(weights.SEED)
    draws = -(-samples // weights.SAMPLES)  # blocks of a fixed size: larger sets begin with the smaller ones
    batches = [planted.TASKS[name](2 * weights.SAMPLES, generator).cut(length) for _ in range(draws)]
    ids, answer, truth = (torch.cat(part) for part in zip(*batches, strict=True))
    guess = weights.logits(model, {"input_ids": ids})[:, -1].argmax(-1)
    right = (guess == answer).nonzero()[:samples, 0]
    if len(right) < samples:
        raise RuntimeError(f"{name} answers {len(right)} of {len(ids)} sequences: train it again (tools/train {name})")
    eligible = (ids != ids[:1]).any(0).expand_as(truth).clone()
    eligible[:, length - 1] = False
    replacement = Tokens(planted.ASK)
    return Task(name, model, {"input_ids": ids[right]}, answer[right], replacement, eligible[right], truth[right])


def recall(samples: int = weights.SAMPLES) -> Task:
    """Associative recall: eight pairs of key and value, and one key again; truth: the value and the key before it."""
    return _task("recall", 2 * planted.PAIRS + 2, samples)


def brackets(samples: int = weights.SAMPLES) -> Task:
    """Which bracket to close next; truth: the one that was opened last."""
    return _task("brackets", planted.LENGTH, samples)


def addition(samples: int = weights.SAMPLES) -> Task:
    """The hundreds' digit of a sum of two four-digit numbers; truth: the columns of hundreds and tens."""
    return _task("addition", 1 + 2 * planted.DIGITS + 3, samples)
