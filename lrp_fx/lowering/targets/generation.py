"""Generated text, every new token attributed to all tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrp_fx.capture import Call, Captured
from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.errors import InputError, TargetError
from lrp_fx.explain.target_types import OfClass, Target, indices_of, normal
from lrp_fx.results import Attributions, Generation

#: new tokens explained from one forward pass, over the longest of their prefixes: what lies behind it is not computed
_GROUP = 16


def generate(
    model: torch.nn.Module,
    explain: Callable[..., Attributions],
    capture: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Captured, Call]],
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    target: Target = None,
) -> Generation:
    """Generate from ``inputs`` and explain every new token.

    The logits at a position depend on nothing after it, so those of the final sequence are those that were seen while
    generating, and one forward pass serves many new tokens. Where the captured graph leaves the length free, it goes no
    further than the last of them; otherwise the whole sequence serves all.

    Raises:
        InputError: when the model has no ``generate``, or generates nothing.
        TargetError: for a target that is not one of every token alike.
    """
    form = _form(target)
    if not hasattr(model, "generate"):
        raise InputError(
            f"{type(model).__name__} has no generate(): explain(targets=[(position, token), ...]) explains given tokens"
        )
    prompt = inputs["input_ids"]
    cached = {"use_cache": True} if hasattr(model, "generation_config") else {}
    with torch.no_grad():
        sequences = model.generate(**inputs, **{"do_sample": False, **cached, **options})  # type: ignore[operator]
    separate = is_encoder_decoder(model)
    name = "decoder_input_ids" if separate else "input_ids"
    start, total = 1 if separate else prompt.shape[1], sequences.shape[1]
    if total <= start:
        raise InputError("nothing was generated: the first token ends the sequence")
    whole = dict(inputs) | {name: sequences}
    mask = inputs.get("attention_mask")
    along = [name]
    if mask is not None and not separate:
        whole["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), total - start)], dim=1)
        along.append("attention_mask")
    explained = []
    group = _GROUP if _resizes(capture, whole, name) else total
    for first in range(start, total, group):
        end = min(first + group, total)
        targets = [replace(form, chosen=sequences[:, i], position=i - 1) for i in range(first, end)]
        prefix = {k: whole[k][:, : end - 1] for k in along} if group < total else {}
        explained.append(explain(**{**whole, **prefix}, targets=targets))
    return Generation(
        sequences=sequences,
        start=start,
        generated=name,
        relevance={
            n: torch.cat([_padded(f.relevance[n], total if n == name else None) for f in explained], 1)
            for n in explained[0].relevance
        },
        latents={},
        target=torch.cat([f.target.T for f in explained], 1),
        ruleset=explained[0].ruleset,
        context=explained[0].context,
        inputs={n: v for n, v in whole.items() if isinstance(v, Tensor)},
    )


def _form(target: Target) -> OfClass:
    """What is explained of every token.

    Raises:
        TargetError: for a target that names a class or a position, or no class at all.
    """
    form = normal("logit" if target is None else target)
    if not isinstance(form, OfClass) or indices_of(form).keys() - {"foil"}:
        raise TargetError(
            f"target={target!r}: the tokens and their positions are those that are generated. Give 'logit', "
            "'contrast', 'log_prob', 'probability', or lrp_fx.Contrast(foil=...)"
        )
    return form


def _resizes(capture: Callable[..., tuple[Captured, Call]], inputs: dict[str, Any], name: str) -> bool:
    """Whether a captured graph leaves the length of an input free."""
    captured, call = capture((), inputs)
    dims = dict(zip(call.tensors, captured.shapes.dims, strict=True))
    return isinstance(dims[name][1], str)


def _padded(relevance: Tensor, length: int | None) -> Tensor:
    """(T, B, n) -> (B, T, length): nothing lies behind a prefix."""
    relevance = relevance.transpose(0, 1)
    return relevance if length is None else torch.nn.functional.pad(relevance, (0, length - relevance.shape[2]))
