"""Selection of the (B, D) embedding from a model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.capture.containers import returned
from lrp_fx.errors import TargetError
from lrp_fx.explain.target import last_positions, padding_masks, shown

#: the embedding: None (the output's only tensor, (B, D)), a path in the output ("pooler_output"), or a function of the
#: output and the inputs by name, linear in the output
Output = str | Callable[[Any, Mapping[str, Tensor]], Tensor] | None

_CHOICES = (
    'give output="pooler_output" (a path in the output), lrp_fx.pairs.mean_pooling, lrp_fx.pairs.first_token, or a '
    "callable (output, inputs) -> (B, D)"
)


def read_embedding(output: Any, inputs: Mapping[str, Tensor], how: Output) -> Tensor:
    """The (B, D) embedding.

    Raises:
        TargetError: if the output has no such tensor, or several without a choice.
    """
    if callable(how):
        embedding = how(output, inputs)
    elif how is None:
        embedding = _only(output)
    else:
        embedding = _at_path(output, how)
    if not isinstance(embedding, Tensor) or not embedding.is_floating_point() or embedding.dim() != 2:
        described = _described(embedding) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TargetError(f"a similarity needs an embedding (B, D), not {described}: {_CHOICES}")
    return embedding


def mean_pooling(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, S, D) hidden states -> (B, D): their mean over positions that are not padding.

    Hidden states are the output's first (B, S, D) tensor; the (B, S) mask among the inputs tells padding.

    Raises:
        TargetError: if the output has no such tensor.
    """
    hidden = _hidden(output)
    for mask in padding_masks(inputs).values():
        if mask.shape == hidden.shape[:2]:
            weights = shown(mask).to(hidden.dtype)[..., None]
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return hidden.mean(1)


def first_token(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, S, D) hidden states -> (B, D): the first position (a class token)."""
    return _hidden(output)[:, 0]


def last_token(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, S, D) hidden states -> (B, D): each sample's last position that is not padding."""
    hidden = _hidden(output)
    positions = last_positions(hidden.shape[1], hidden.shape[0], padding_masks(inputs)).to(hidden.device)
    return hidden.gather(1, positions[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def _leaves(output: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(returned(output)) if isinstance(v, Tensor) and v.is_floating_point()]


def _described(value: Tensor) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}"


def _hidden(output: Any) -> Tensor:
    leaves = _leaves(output)
    hidden = next((v for v in leaves if v.dim() == 3), None)
    if hidden is None:
        shapes = ", ".join(map(_described, leaves)) or "no floating tensor"
        raise TargetError(f"there are no hidden states (B, S, D) to pool in the output: it has {shapes}")
    return hidden


def _only(output: Any) -> Tensor:
    leaves = _leaves(output)
    flat = [v for v in leaves if v.dim() == 2]
    if len(flat) != 1 or len(leaves) > 1:
        shapes = ", ".join(map(_described, leaves)) or "no floating tensor"
        raise TargetError(
            f"the output does not tell which of its tensors is the embedding (B, D): it has {shapes}; {_CHOICES}"
        )
    return flat[0]


def _at_path(output: Any, path: str) -> Any:
    value = output
    for part in path.split("."):
        try:
            value = value[int(part)] if part.lstrip("-").isdigit() else _member(value, part)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise TargetError(
                f"output={path!r}: the output ({type(output).__name__}) has no {part!r} there; {_CHOICES}"
            ) from error
    return value


def _member(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) and name in value else getattr(value, name)
