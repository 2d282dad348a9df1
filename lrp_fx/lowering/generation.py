"""Generated text, every new token attributed to all tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.lowering.targets import Attributions


@dataclass(frozen=True)
class Generation:
    """Generated tokens and where each of them comes from.

    Attributes:
        sequences: (B, T) all token ids: the prompt and what was generated; of an encoder-decoder, the decoder's.
        start: index of the first new token in ``sequences``.
        relevance: input name -> (B, T_new, ...): of the tokens in ``sequences``, (B, T_new, T), zero from the token
            itself on.
        target: (B, T_new) logit of each new token.
        ruleset: name of the rule set.
    """

    sequences: Tensor
    start: int
    relevance: dict[str, Tensor]
    target: Tensor
    ruleset: str


def generate(
    model: torch.nn.Module, explain: Callable[..., Attributions], inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> Generation:
    """Generate from ``inputs`` and explain every new token.

    The logits at a position depend on nothing after it, so those of the final sequence are those that were seen while
    generating, and one forward pass serves all new tokens.

    Raises:
        InputError: when the model has no ``generate``, or generates nothing.
    """
    if not hasattr(model, "generate"):
        raise InputError(
            f"{type(model).__name__} has no generate(): explain_targets(targets=[(position, token), ...]) explains "
            "given tokens"
        )
    prompt = inputs["input_ids"]
    with torch.no_grad():
        sequences = model.generate(**inputs, **{"do_sample": False, **options})  # type: ignore[operator]
    separate = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    start = 1 if separate else prompt.shape[1]
    new = sequences.shape[1] - start
    if new < 1:
        raise InputError("nothing was generated: the first token ends the sequence")
    whole = dict(inputs) | {"decoder_input_ids" if separate else "input_ids": sequences}
    mask = inputs.get("attention_mask")
    if mask is not None and not separate:
        whole["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), new)], dim=1)
    targets = [(start + i - 1, sequences[:, start + i]) for i in range(new)]
    found = explain(**whole, targets=targets)
    relevance = {name: r.transpose(0, 1) for name, r in found.relevance.items()}
    return Generation(sequences, start, relevance, found.target.T, found.ruleset)
