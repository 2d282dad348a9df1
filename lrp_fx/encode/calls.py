"""Encoding of a call whose first arguments are raw inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.encode.encoded import Encoded
from lrp_fx.encode.encoder import KINDS, InputEncoder, kind_of
from lrp_fx.errors import InputError


def encoded_call(
    encoder: InputEncoder | None,
    like: Callable[[], Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    left: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any], Encoded | None]:
    """Encode a call whose first arguments are raw (texts, images, sounds, lists of them); others are unchanged.

    Args:
        encoder: the encoder; None for a model without one.
        like: returns a tensor on the model's device, in its precision: encoded tensors get both, if they are floating.
        args: the call's arguments.
        kwargs: the call's arguments by name.
        left: pad texts on the left, for generation.

    Returns:
        Arguments, arguments by name, and what was encoded; None for a call without raw inputs.

    Raises:
        InputError: for a raw input without an encoder, for two of one kind, and for a call with neither raw inputs nor
            tensors.
    """
    kinds = list(itertools.takewhile(lambda kind: kind is not None, map(kind_of, args)))
    raw = {kind: value for kind, value in zip(kinds, args, strict=False) if kind is not None}
    if not raw:
        if encoder is not None and args and not _has((args, kwargs), torch.Tensor):
            wanted = "a text, a pair, a chat, an image (of bytes), a sound, or a list of them"
            raise InputError(f"{_unlike_raw(args[0])}: give {wanted}")
        return args, kwargs, None
    missing = [k for k, v in raw.items() if encoder is None or not encoder.takes(v, k)]
    if encoder is None or missing:
        if _has((args, kwargs), torch.Tensor, np.ndarray):
            return args, kwargs, None  # the raw argument is a constant of a call with tensors
        kind = missing[0]
        path = "; open a file before: PIL.Image.open(path)" if kind == "text" and encoder is not None else ""
        raise InputError(f"nothing encodes this {kind}: lrp_fx.convert(model, {KINDS[kind].tool}=...){path}")
    if len(raw) < len(kinds):
        raise InputError(f"{len(kinds)} raw inputs of the kinds {', '.join(raw)}: give several as a list")
    rate = None if encoder.facts.names("sampling_rate") else kwargs.pop("sampling_rate", None)
    encoded = encoder.encode(raw, kwargs, left, rate)
    example = like()
    tensors = {n: _placed_like(v, example) if n not in kwargs else v for n, v in encoded.inputs.items()}
    return args[len(kinds) :], tensors, encoded


def _has(inputs: Any, *types: type) -> bool:
    """Whether there is a value of these types among nested inputs."""
    return any(isinstance(value, types) for value in pytree.tree_leaves(inputs))


def _unlike_raw(value: Any) -> str:
    """Why a value is no raw input."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape} is no input that can be encoded"
    if not isinstance(value, list):
        return f"{' '.join(repr(value).split()):.60} is no input that can be encoded"
    if not value:
        return "the list of inputs is empty"
    kinds = list(map(kind_of, value))
    odd = kinds.index(None) if None in kinds else next((i for i, kind in enumerate(kinds) if kind != kinds[0]), 0)
    return f"entry {odd} of the list, {value[odd]!r:.60}, is no input of the kind of the others"


def _placed_like(value: Any, like: Tensor) -> Any:
    """A tensor on the device of another; a floating one in its precision, too."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)
