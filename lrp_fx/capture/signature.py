"""Call signatures: the arguments of a call as flat inputs of a captured graph, and the key for captures of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lrp_fx.capture.containers import Place, by_value, opened, structures
from lrp_fx.errors import InputError


@dataclass(frozen=True)
class Call:
    """One call, flattened.

    Attributes:
        names: user-facing name of every leaf (``"input_ids"``, ``"batch[0]"``).
        leaves: every leaf of ``(args, kwargs)``, tensors and constants alike.
        key: structure, dtypes, ranks, devices and constants; captures are looked up by it.
        numbers: indices of leaves that are Python floats, passed as tensors without dimensions.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    key: tuple[Any, ...]
    numbers: tuple[int, ...] = ()

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensor leaves by name."""
        return {n: v for n, v in zip(self.names, self.leaves, strict=True) if isinstance(v, torch.Tensor)}

    @property
    def free(self) -> torch.dtype | None:
        """Dtype of the tensors for its Python floats; None if there are none."""
        return self.leaves[self.numbers[0]].dtype if self.numbers else None

    def sizes_only(self) -> Call:
        """The same call with expanded zeros for its tensors, which keeps sizes without contents."""
        leaves = tuple(v.new_zeros(()).expand(v.shape) if isinstance(v, torch.Tensor) else v for v in self.leaves)
        return replace(self, leaves=leaves)


def free_numbers(tree: Any, precision: torch.dtype) -> Any:
    """Arguments with zero-dimensional tensors in place of Python floats: one graph serves all their values."""
    return pytree.tree_map_only(float, lambda v: torch.tensor(v, dtype=precision), opened(tree))


def _display(path: Sequence[Any], parameters: list[str]) -> str:
    """``(args, kwargs)`` key path -> user-facing name."""
    head, rest = path[0].idx, path[1:]
    if head == 0:
        index = rest[0].idx
        name = parameters[index] if index < len(parameters) else f"args[{index}]"
    else:
        name = str(rest[0].key)
    return name + "".join(str(key) for key in rest[1:])


def positional_names(model: torch.nn.Module) -> list[str]:
    """Names of the positional parameters of a model's forward."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def read_call(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: torch.dtype | None = None
) -> Call:
    """Flatten a call, objects that pytree does not know included. Keyword order does not matter.

    Args:
        model: the model that is called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        free: dtype in which Python floats become tensors (:func:`free_numbers`); None leaves them constants.

    Raises:
        InputError: for an empty, sparse, nested or quantized tensor, a floating-point input with NaN, or an object that
            cannot be taken apart.
    """
    return flatten(positional_names(model), args, kwargs, free)


def flatten(
    parameters: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], free: torch.dtype | None = None
) -> Call:
    """As :func:`read_call`, for a callable with these positional parameters."""
    tree = opened((args, dict(sorted(kwargs.items()))))
    flat, spec = pytree.tree_flatten_with_path(tree)
    names = tuple(_display(path, parameters) for path, _ in flat)
    numbers = tuple(i for i, (_, leaf) in enumerate(flat) if free is not None and type(leaf) is float)
    leaves = tuple(torch.tensor(v, dtype=free) if i in numbers else v for i, (_, v) in enumerate(flat))
    key: list[Any] = [str(spec), *structures(tree)]
    for name, (path, leaf) in zip(names, flat, strict=True):
        if free is not None and type(leaf) is float:
            key.append((float, free))
        elif isinstance(leaf, torch.Tensor):
            _check(name, leaf, inside=isinstance(path[-1], Place))
            key.append((leaf.dtype, leaf.dim(), str(leaf.device)))
        else:
            key.append(by_value(leaf))
    return Call(names, leaves, tuple(key), numbers)


def _check(name: str, value: torch.Tensor, inside: bool) -> None:
    """Reject NaN, empty and sparse tensors; ``inside`` an object a tensor may be empty, such as a new cache."""
    if value.is_nested:
        raise InputError(f"input '{name}' is a nested tensor: pad it (`.to_padded_tensor(0.0)`) and give a mask")
    if value.layout is not torch.strided:
        raise InputError(f"input '{name}' is a tensor of layout {value.layout}: give it dense (`.to_dense()`)")
    if value.is_quantized:
        raise InputError(f"input '{name}' is a quantized tensor: give its values (`.dequantize()`)")
    if value.numel() == 0 and not inside:
        raise InputError(
            f"input '{name}' is empty (shape {tuple(value.shape)}): give at least one sample and one position"
        )
    if value.is_floating_point() and not value.is_meta and not torch.compiler.is_compiling() and value.isnan().any():
        raise InputError(f"input '{name}' contains NaN: clean it before explaining")
