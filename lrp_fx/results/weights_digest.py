"""A digest of a model, to tell whether a saved result is of the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLED = 256  #: number of sampled entries of each tensor


def model_fingerprint(model: nn.Module) -> str:
    """A hexadecimal digest of names, sizes, precisions and evenly spaced entries of parameters and buffers.

    Training changes all entries of a tensor, so some of them suffice; an edit between the sampled entries is missed. Of
    packed, sharded and meta tensors only names, sizes and precisions count.
    """
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(_entries(tensor))
    return digest.hexdigest()


def _entries(tensor: Tensor) -> bytes:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    if not plain or tensor.is_meta or not tensor.numel():
        return b""
    places = torch.linspace(0, tensor.numel() - 1, min(_SAMPLED, tensor.numel()), dtype=torch.float64).long()
    index = torch.unravel_index(places, tensor.shape) if tensor.dim() else ()
    values = tensor.detach()[tuple(i.to(tensor.device) for i in index)]
    return values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
