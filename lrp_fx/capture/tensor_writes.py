"""Writes of a run into tensors, undone.

The copy of a model that is captured shares the memory of all tensors with the model. A model may scale its weights at
its first run, and remember that in an attribute. A run of the copy would change the model's weights, not its attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

_PLAIN = (Tensor, torch.nn.Parameter)
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_ASSIGNMENTS = frozenset({"__setitem__", *(f"__i{name}__" for name in _OPERATORS)})


class TensorWrites(TorchFunctionMode):
    """Saves tensors before a run writes into them.

    Writes that PyTorch's Python functions do not see, such as those through NumPy, are not noticed.

    Attributes:
        saved: id of a storage -> (the storage, a copy of what it held before the first write).
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._aliases = [(t, t.detach()) for t in tensors if type(t) in _PLAIN and _has_memory(t)]
        self._storages = {alias.untyped_storage()._cdata for _, alias in self._aliases}
        self.saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if _writes(func, keywords):
            for value in pytree.tree_leaves((args, keywords)):
                if type(value) in _PLAIN and _has_memory(value):
                    self._save(value.untyped_storage())
        return func(*args, **keywords)

    def _save(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._storages and storage._cdata not in self.saved:
            with no_dispatch():  # a tracer does not record the copy
                self.saved[storage._cdata] = storage, storage.clone()

    def undo(self) -> None:
        """Give all tensors the memory and the values that they had."""
        for tensor, alias in self._aliases:
            if tensor.data_ptr() != alias.data_ptr():
                tensor.data = alias
        for storage, before in self.saved.values():
            storage.copy_(before)


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has a storage: neither functional, nor of a level of ``vmap`` or of a derivative."""
    wrapped = torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_meta and not wrapped


def _writes(func: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether a function writes into an argument, by its schema, or by PyTorch's conventions for names."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    name = getattr(func, "__name__", "")
    return name in _ASSIGNMENTS or (name.endswith("_") and not name.endswith("__")) or keywords.get("out") is not None


@contextmanager
def writes_undone(tensors: Iterable[Tensor]) -> Iterator[TensorWrites]:
    """In this context a model may run; what it wrote into these tensors is undone at the end."""
    writes = TensorWrites(tensors)
    try:
        with writes:
            yield writes
    finally:
        with torch.no_grad():
            writes.undo()
