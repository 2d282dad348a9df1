"""Models larger than the machine: weights that stay where they were offloaded to until an operator needs them.

Libraries that place a model on several devices (accelerate's ``device_map``) leave the parameters of offloaded modules
on the meta device and bring their data in by a hook around each ``forward``. A capture needs neither: it is taken of a
copy of the modules without hooks, whose offloaded parameters are :class:`Offloaded`, and so are the graph's. Such a
weight reads its data when an operator runs on it and lets go of it afterwards. What autograd keeps between forward and
relevance is the :class:`Offloaded` itself, so that the backward sweep reads the data again: in both directions the
weights in memory are those of one operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lrp_fx.errors import InputError

_HOOK, _UNHOOKED = "_hf_hook", "_old_forward"  #: what accelerate leaves on a module


class Offloaded(Tensor):
    """A tensor without data of its own, on the device where operators want it.

    Operators on it alone (views, a weight's positive part) are put off with it; all others read it first.

    Attributes:
        read: fetches the data, anew each time.
        away: they lie outside of the model (otherwise the model has them in another form).
    """

    read: Callable[[], Tensor]
    away: bool

    @staticmethod
    def __new__(cls, like: Tensor, device: torch.device, read: Callable[[], Tensor], away: bool = True) -> Offloaded:
        """A stand-in of the sizes, strides and precision of ``like``."""
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, like.stride(), dtype=like.dtype, device=device, requires_grad=False
        )

    def __init__(self, like: Tensor, device: torch.device, read: Callable[[], Tensor], away: bool = True) -> None:
        self.read, self.away = read, away

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Offloaded({tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Read what the operator needs and run it, or put it off where it needs nothing else."""
        kwargs = kwargs or {}

        def run() -> Any:
            dense, named = pytree.tree_map_only(Offloaded, lambda weight: weight.read(), (args, kwargs))
            return func(*dense, **named)

        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func._schema.is_mutable or _NOW & set(func.tags) or not all(isinstance(t, Offloaded) for t in tensors):
            return run()
        like = func(*_sized(args), **_sized(kwargs))
        if not isinstance(like, Tensor):
            return run()
        return Offloaded(like, kwargs.get("device") or tensors[0].device, run, any(t.away for t in tensors))  # type: ignore[attr-defined]


_NOW = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}


def _sized(arguments: Any) -> Any:
    """Arguments with the sizes of their weights alone."""

    def empty(leaf: Any) -> Any:
        if isinstance(leaf, Offloaded):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    return pytree.tree_map(empty, arguments)


def is_hooked(model: nn.Module) -> bool:
    """Whether hooks bring weights of the model in."""
    return any(hasattr(module, _HOOK) for module in model.modules())


def without_hooks(model: nn.Module) -> nn.Module:
    """The model itself, or where hooks bring its weights in, a copy of its modules without them.

    The copy shares every tensor with the model; parameters and buffers that hooks bring in are :class:`Offloaded`.
    Where the modules run on several devices, what they are called with is moved there.
    """
    hooked = [module for module in model.modules() if hasattr(module, _HOOK)]
    if not hooked:
        return model
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in hooked:
        memo[id(getattr(module, _HOOK))] = None  # it holds all of the weights
        memo[id(module.forward)] = None
    bare = copy.deepcopy(model, memo)
    devices = {getattr(hook, "execution_device", None) for module in hooked for hook in _hooks(getattr(module, _HOOK))}
    several = len({torch.device(device) for device in devices if device is not None}) > 1
    for module, twin in zip(model.modules(), bare.modules(), strict=True):
        if not hasattr(module, _HOOK):
            continue
        for hook in _hooks(getattr(module, _HOOK)):
            if getattr(hook, "offload", False):
                _take_over(twin, hook)
            if several and getattr(hook, "execution_device", None) is not None:
                twin.register_forward_pre_hook(_Arrival(torch.device(hook.execution_device)), with_kwargs=True)
        del twin.__dict__[_HOOK]
        twin.__dict__["forward"] = twin.__dict__.pop(_UNHOOKED)
    return bare


def _hooks(hook: Any) -> list[Any]:
    """A hook, or those it consists of."""
    return [part for inner in hook.hooks for part in _hooks(inner)] if hasattr(hook, "hooks") else [hook]


def _take_over(module: nn.Module, hook: Any) -> None:
    """Replace what ``hook`` brings into a module."""
    inside = hook.place_submodules
    for path, tensor in [*module.named_parameters(recurse=inside), *module.named_buffers(recurse=inside)]:
        if tensor.is_meta:
            device = torch.device(hook.execution_device)
            put(module, path, Offloaded(tensor, device, _Reader(hook, path, tensor.dtype)))


def put(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer at ``path``; a parameter stays one."""
    owner, _, name = path.rpartition(".")
    parent = module.get_submodule(owner)
    old = getattr(parent, name)
    setattr(parent, name, nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor)


def brought_in(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with all of its weights in memory, for what needs them all: compilers and files.

    Raises:
        InputError: for weights that lie outside of the model, because memory may not hold them.
    """
    tensors = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    offloaded = {path: tensor for path, tensor in tensors if isinstance(tensor, Offloaded)}
    if not offloaded:
        return graph_module
    if away := [path for path, tensor in offloaded.items() if tensor.away]:
        raise InputError(
            f"weights of this model are offloaded ({away[0]} and {len(away) - 1} more), and compiling or saving its "
            "relevance graph needs them all in memory. Remedy: load the model without offloading for that, or use "
            "explain() and lower(), which read one weight at a time."
        )
    whole = fx.GraphModule(graph_module, graph_module.graph, class_name=type(graph_module).__name__)
    for path, tensor in offloaded.items():
        put(whole, path, tensor.read())
    return whole


@dataclass(frozen=True)
class _Arrival:
    """Moves what a module is called with to the module's device."""

    device: torch.device

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), (args, kwargs))


@dataclass(frozen=True)
class _Reader:
    """Reads one weight of a hook."""

    hook: Any
    path: str
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        return self.hook.weights_map[self.path].to(self.hook.execution_device, self.dtype)
