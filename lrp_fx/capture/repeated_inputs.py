"""One tensor given twice: a capture is of a call whose inputs have nothing to do with one another.

Recording takes tensors for what they are: ``model(x, x)`` has one input, and ``model(x, x[:, :3])`` one and a view of
it. Later calls give two. So a capture sees copies of what shares memory, with another input or with the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def distinct(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call with no tensor that shares memory with another one, or with the model's."""
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
    """What says whether two tensors share memory; the tensor itself where it has none of its own."""
    try:
        return ("storage", tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors and wrappers of others
        return ("tensor", id(tensor))
