"""Generated text: every new token attributed to all tokens before it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrp_fx.capture import Call, Captured
from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.errors import InputError, TargetError
from lrp_fx.explain.target_types import OfClass, Target, indices_of, normal
from lrp_fx.results import Accounting, Attributions, Generation

#: new tokens explained by one forward pass, over the longest of their prefixes
_GROUP = 16


def generate(
    model: torch.nn.Module,
    explain: Callable[..., Attributions],
    capture: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Captured, Call]],
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    target: Target = None,
    latents: bool = False,
) -> Generation:
    """Generate from ``inputs`` and explain every new token.

    Causal logits depend on no later position. The logits of the final sequence therefore equal those seen during
    generation, and one forward pass explains many new tokens: _GROUP of them on their longest prefix if the captured
    graph has a dynamic length, otherwise all on the whole sequence.

    Args:
        model: the model, with a method ``generate``.
        explain: explains several targets of one call.
        capture: captures the model for a call.
        inputs: the prompt, by name.
        options: arguments of ``generate``.
        target: the target of every token.
        latents: whether ``explain`` collects relevance inside the model. Then each prefix is one token longer than it
            need be, so that the last one is the whole sequence, and latents have a position for each token.

    Raises:
        InputError: when the model has no ``generate``, or generates nothing.
        TargetError: for a target that names a class or a position.
    """
    form = _form(target)
    if not hasattr(model, "generate"):
        raise InputError(
            f"{type(model).__name__} has no generate(): explain(targets=[(position, token), ...]) explains given tokens"
        )
    separate = is_encoder_decoder(model)
    name = "decoder_input_ids" if separate else "input_ids"
    sequences, start = _sequences(model, inputs, options, 1 if separate else inputs["input_ids"].shape[1])
    total = sequences.shape[1]
    if total <= start:
        raise InputError("nothing was generated: the first token ends the sequence")
    whole = dict(inputs) | {name: sequences}
    along = [name]
    if not separate:  # inputs per token grow, too: the mask shows new tokens, others repeat their last value
        for key, value in inputs.items():
            if key != name and isinstance(value, Tensor) and value.shape == inputs[name].shape:
                last = value.new_ones(len(value), 1) if key == "attention_mask" else value[:, -1:]
                whole[key] = torch.cat([value, last.expand(-1, total - start)], dim=1)
                along.append(key)
    explained = []
    group = _GROUP if _resizes(capture, whole, name) else total
    for first in range(start, total, group):
        end = min(first + group, total)
        targets = [replace(form, chosen=sequences[:, i], position=i - 1) for i in range(first, end)]
        prefix = {k: whole[k][:, : end if latents else end - 1] for k in along} if group < total else {}
        explained.append(explain(**{**whole, **prefix}, targets=targets))
    return Generation(
        sequences=sequences,
        start=start,
        generated=name,
        relevance={
            n: torch.cat([_padded(f.relevance[n], total if n == name else None) for f in explained], 1)
            for n in explained[0].relevance
        },
        latents={n: torch.cat(_same_sizes([f.latents[n] for f in explained]), 1) for n in explained[0].latents},
        target=torch.cat([f.target.T for f in explained], 1),
        ruleset=explained[0].ruleset,
        context=explained[0].context,
        _accounts=functools.partial(_account, explained, group),
        inputs={n: v for n, v in whole.items() if isinstance(v, Tensor)},
    )


class _FirstStep:
    """Logits processor that stores the decoder's tokens before the first new token, and does not change the logits."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.tokens = input_ids.clone() if self.tokens is None else self.tokens
        return scores


def _sequences(model: Any, inputs: Mapping[str, Any], options: Mapping[str, Any], start: int) -> tuple[Tensor, int]:
    """(sequences of the decoder's start and the generated tokens, length of that start).

    The ``generate`` of some models leaves the start out of its result: it is added.
    """
    first = _FirstStep()
    library = {"use_cache": True} if hasattr(model, "generation_config") else {}
    processors = {"logits_processor": [*options.get("logits_processor", ()), first]} if library else {}
    with torch.no_grad():
        sequences = model.generate(**inputs, **{"do_sample": False, **library, **options, **processors})
    if first.tokens is None:
        return sequences, start
    prefix = first.tokens[:: max(1, len(first.tokens) // len(sequences))]  # beams repeat the rows
    if sequences.shape[1] < prefix.shape[1] or not torch.equal(sequences[:, : prefix.shape[1]], prefix):
        sequences = torch.cat([prefix, sequences], dim=1)
    return sequences, prefix.shape[1]


def _account(explained: Sequence[Attributions], group: int, number: int) -> Accounting:
    """The accounting of a new token: that of its target in its forward pass."""
    accounts = explained[number // group]._accounts
    assert accounts is not None
    return accounts(number % group)


def _form(target: Target) -> OfClass:
    """The target of every token, without class and position.

    Raises:
        TargetError: for a target that names a class or a position, or is no target of a class.
    """
    form = normal("logit" if target is None else target)
    if not isinstance(form, OfClass) or indices_of(form).keys() - {"foil"}:
        raise TargetError(
            f"target={target!r}: the generated tokens are explained, each at its position. Give 'logit', 'contrast', "
            "'log_prob', 'probability', or lrp_fx.Contrast(foil=...)"
        )
    return form


def _resizes(capture: Callable[..., tuple[Captured, Call]], inputs: dict[str, Any], name: str) -> bool:
    """Whether the length of an input is dynamic in the captured graph."""
    captured, call = capture((), inputs)
    dims = dict(zip(call.tensors, captured.shapes.dims, strict=True))
    return isinstance(dims[name][1], str)


def _same_sizes(latents: Sequence[Tensor]) -> list[Tensor]:
    """(T, B, ...) of each prefix -> (B, T, ...) in the largest sizes, with zeros behind a shorter prefix."""
    sizes = [max(of_prefixes) for of_prefixes in zip(*(latent.shape[2:] for latent in latents), strict=True)]
    missing = ([n for size, one in zip(sizes, t.shape[2:], strict=True) for n in (size - one, 0)] for t in latents)
    return [torch.nn.functional.pad(t.transpose(0, 1), m[::-1]) for t, m in zip(latents, missing, strict=True)]


def _padded(relevance: Tensor, length: int | None) -> Tensor:
    """(T, B, n) -> (B, T, length), with zeros behind the prefix."""
    relevance = relevance.transpose(0, 1)
    return relevance if length is None else torch.nn.functional.pad(relevance, (0, length - relevance.shape[2]))
