"""Conditional relevance (CRP, Achtibat et al. 2023, arXiv:2206.03208): relevance through chosen neurons only.

A condition names features of module outputs. The backward pass cuts off relevance of all other features there, so the
inputs receive the part of the explanation that flows through the chosen neurons. Relevance under conditions on each
neuron of a layer adds up to unconditional relevance, if all relevance flows through that layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lrp_fx.errors import InputError, LatentError

#: module path -> feature ids (last dimension; dimension 1 of images), or a mask that broadcasts to the output
Condition = Mapping[str, int | Sequence[int] | Tensor]

_BY_POSITION = "Remedy: an input of the model that has this name is given by position."


def places_of(at: str | Iterable[str], *conditions: Condition) -> tuple[str, ...]:
    """Names of latents to tap: those in ``at``, and those of conditions.

    Raises:
        InputError: for a tensor, or another value that is an input of the model by that name.
    """
    names = (at,) if isinstance(at, str) else tuple(at)
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"at= is a {type(at).__name__}: give names of latents. {_BY_POSITION}")
    for condition in conditions:
        if not isinstance(condition, Mapping):
            raise InputError(f"condition= is a {type(condition).__name__}: give {{latent: features}}. {_BY_POSITION}")
    return tuple(dict.fromkeys((*names, *(path for condition in conditions for path in condition))))


def condition_mask(path: str, latent: Tensor, features: int | Sequence[int] | Tensor) -> Tensor:
    """The mask of a latent, in its shape: 1 at chosen features and 0 elsewhere, or the weights of a mask.

    Raises:
        LatentError: for a feature out of range, or a mask of another shape.
    """
    if isinstance(features, Tensor) and (features.is_floating_point() or features.dtype is torch.bool):
        try:
            return features.to(latent).expand(latent.shape)
        except RuntimeError as error:
            raise LatentError(
                f"the condition at {path!r} has the shape {tuple(features.shape)}, its output {tuple(latent.shape)}"
            ) from error
    axis = 1 if latent.dim() > 3 else -1
    ids = torch.as_tensor(features, device=latent.device).reshape(-1)
    width = latent.shape[axis]
    if ids.numel() == 0 or bool((ids >= width).any()) or bool((ids < -width).any()):
        raise LatentError(f"the condition at {path!r} names features {ids.tolist()}: give some of 0 to {width - 1}")
    mask = torch.zeros(width, dtype=latent.dtype, device=latent.device)
    mask[ids] = 1
    return mask.reshape([-1, *[1] * (latent.dim() - 2)] if axis == 1 else [-1]).expand(latent.shape)


def condition_masks(condition: Condition, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Path -> the mask of its latent; latents without a gradient are left out.

    Raises:
        LatentError: as :func:`condition_mask`.
    """
    return {
        path: condition_mask(path, latents[path].detach(), features)
        for path, features in condition.items()
        if latents[path].requires_grad
    }
