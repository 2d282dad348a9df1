"""Column of the microbiome language model."""

from __future__ import annotations

import pretrained
import torch
from torch import Tensor, nn

from columns import weights
from lrp_fx.evaluate.task import Task, Tokens

MASK, START, SPECIAL = 1, 2, 4
LENGTH = 48


@torch.no_grad()
def microbiomes(model: nn.Module, count: int, length: int, generator: torch.Generator) -> Tensor:
    """(count, length) ids, drawn from the model itself: a start token, then genera, none of them twice."""
    ids, past = torch.full((count, 1), START), None
    for _ in range(length - 1):
        output = model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
        past = output.past_key_values
        scores = output.logits[:, -1].scatter(1, ids, -torch.inf)
        scores[:, :SPECIAL] = -torch.inf
        ids = torch.cat([ids, torch.multinomial(torch.softmax(scores, -1), 1, generator=generator)], 1)
    return ids


def microbes() -> Task:
    """GPT-2 over genera: the most likely next one, after 47 drawn from the model.

    The package ships no microbiomes, so samples are drawn from the model itself: from the start token at temperature one,
    without repetition, as a real microbiome lists a genus once. The mask token replaces removed genera.
    """
    model = pretrained.genera_model(pretrained.find("mgm"))
    ids = microbiomes(model, weights.SAMPLES, LENGTH, torch.Generator().manual_seed(weights.SEED))
    inputs = {"input_ids": ids}
    target = weights.logits(model, inputs)[:, -1].argmax(-1)
    return Task("microbes", model, inputs, target, Tokens(MASK), ids >= SPECIAL)
