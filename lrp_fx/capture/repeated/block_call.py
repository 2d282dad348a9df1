"""One call of a block: its inputs, its own tensors, and what has to be equal in the call of another block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_slot
from torch.utils import _pytree as pytree

from lrp_fx.capture.repeated.alike import PLAIN
from lrp_fx.capture.repeated.run_log import settings


@dataclass(frozen=True, eq=False)
class BlockCall:
    """A call of a block under a tracer.

    Attributes:
        module: the block.
        forward: the forward of its class.
        tracer: the tracer.
        leaves: flat arguments.
        spec: their structure.
        stored: the block's parameters and buffers by their paths in it.
        nodes: the nodes of the tensors among ``leaves``, then of ``stored``.
    """

    module: nn.Module
    forward: Callable[..., Any]
    tracer: Any
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    stored: dict[str, Tensor]
    nodes: tuple[Node, ...]

    @classmethod
    def of(
        cls, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any], tracer: Any
    ) -> BlockCall | None:
        """The call; None for other arguments than traced tensors, sizes and plain values."""
        leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
        stored = dict(module.named_parameters(remove_duplicate=False)) | dict(
            module.named_buffers(remove_duplicate=False)
        )
        if not all(isinstance(leaf, (Tensor, torch.SymInt, *PLAIN)) for leaf in leaves):
            return None
        nodes = [node_of(t, tracer) for t in _tensors(leaves, stored)]
        if None in nodes:
            return None
        call = cls(module, forward, tracer, tuple(leaves), spec, stored, tuple(nodes))  # type: ignore[arg-type]
        call.form  # noqa: B018  (read now: the run may change it)
        return call

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of :attr:`nodes`."""
        return _tensors(self.leaves, self.stored)

    @cached_property
    def form(self) -> tuple[Any, ...]:
        """The key of the call: calls with equal keys are traced alike. It has the form of every input, which inputs are
        one and the same tensor, and the settings of PyTorch that a trace depends on. It is read before the run.
        """
        return self._form_now()

    def _form_now(self) -> tuple[Any, ...]:
        tensors = self.tensors
        first: dict[int, int] = {}
        pattern = tuple(first.setdefault(id(tensor), index) for index, tensor in enumerate(tensors))
        with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():  # a stride may be computed when it is read
            leaves = tuple(_form(leaf) for leaf in self.leaves)
            stored = tuple((path, _form(tensor)) for path, tensor in self.stored.items())
        return (leaves, stored, pattern, settings())

    def is_intact(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the arguments are the same objects as before the run, and no tensor has another form."""
        leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
        return spec == self.spec and all(map(_is, leaves, self.leaves)) and self.form == self._form_now()

    def current_nodes(self) -> tuple[Node | None, ...]:
        """The nodes of :attr:`tensors` now."""
        return tuple(node_of(tensor, self.tracer) for tensor in self.tensors)


def _is(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, PLAIN) and type(a) is type(b) and bool(a == b))


def _tensors(leaves: Sequence[Any], stored: dict[str, Tensor]) -> list[Tensor]:
    return [*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *stored.values()]


def node_of(value: Any, tracer: Any) -> Node | None:
    """The node that computes a tensor in the graph of a tracer; None if it is not traced, and for other values."""
    slot: Any = get_proxy_slot(value, tracer, None) if isinstance(value, Tensor) else None
    return None if slot is None else slot.proxy.node


def last_nodes(graph: Any, count: int) -> list[Node]:
    """The last nodes of a graph under construction, the very last first."""
    nodes = iter(reversed(graph.nodes))
    return [next(nodes) for _ in range(count)]


def _form(leaf: Any) -> Any:
    """The form of an input, without a guard on its sizes."""
    if isinstance(leaf, Tensor):
        place = (*map(_size, leaf.shape), *map(_size, leaf.stride()), _size(leaf.storage_offset()))
        kind = (type(leaf), leaf.layout, leaf.dtype, leaf.device, leaf.requires_grad, leaf.is_conj(), leaf.is_neg())
        return (leaf.dim(), place, kind)
    return _size(leaf) if isinstance(leaf, torch.SymInt) else (type(leaf), leaf)


def _size(size: Any) -> Any:
    return _SymbolicSize(size) if isinstance(size, torch.SymInt) else size


@dataclass(frozen=True, eq=False)
class _SymbolicSize:
    """A symbolic size, compared by what is known of it then: a loop over a size fixes it."""

    size: torch.SymInt

    @property
    def expression(self) -> Any:
        return self.size.node.expr

    def __eq__(self, other: object) -> bool:
        return bool(self.expression == (other.expression if isinstance(other, _SymbolicSize) else other))
