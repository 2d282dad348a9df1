"""Inputs that share memory: a capture needs independent inputs.

A recording would treat ``model(x, x)`` as a call with one input, and ``model(x, x[:, :3])`` as one with an input and
its view, but later calls may pass two tensors. So inputs that share memory with another input or with the model are
copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def distinct(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call, with copies of tensors that share memory with another one or with the model."""
    seen = {_memory(t) for t in (*model.parameters(), *model.buffers())}

    def apart(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        memory = _memory(leaf)
        if memory in seen:
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        seen.add(memory)
        return leaf

    result: tuple[Any, Any] = pytree.tree_map(apart, (args, kwargs))
    return result


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """A key that is equal for tensors that share memory; the tensor's id if it has no storage."""
    try:
        return ("storage", tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors and wrappers of others
        return ("tensor", id(tensor))
