"""Models larger than the memory: offloaded weights that are loaded for one operator at a time.

Libraries that place a model on several devices (accelerate's ``device_map``) keep the parameters of offloaded modules
on the meta device, and load their data by hooks around each ``forward``. A capture uses a copy of the modules without
hooks, with :class:`Offloaded` parameters, which the graph shares. Such a weight loads its data for an operator and
frees it afterwards. Autograd saves the :class:`Offloaded` itself, so the backward sweep loads the data again. In both
directions only the weights of one operator are in memory.
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

_HOOK, _UNHOOKED = "_hf_hook", "_old_forward"  #: attributes that accelerate sets on a module


class Offloaded(Tensor):
    """A tensor without data, on the device on which operators need it.

    Operators on offloaded tensors alone (views, the positive part of a weight) are deferred; all others load the data.

    Attributes:
        read: loads the data, anew each time.
        away: whether the data is outside of the model; otherwise the model has it in another form.
    """

    read: Callable[[], Tensor]
    away: bool

    @staticmethod
    def __new__(cls, like: Tensor, device: torch.device, read: Callable[[], Tensor], away: bool = True) -> Offloaded:
        """A tensor with the sizes, strides and dtype of ``like``."""
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, like.stride(), dtype=like.dtype, device=device, requires_grad=False
        )

    def __init__(self, like: Tensor, device: torch.device, read: Callable[[], Tensor], away: bool = True) -> None:
        self.read, self.away = read, away

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Offloaded({tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Load the operands and run the operator, or defer it if all its tensors are offloaded."""
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
    """Arguments with meta tensors in place of offloaded ones."""

    def empty(leaf: Any) -> Any:
        if isinstance(leaf, Offloaded):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    return pytree.tree_map(empty, arguments)


def is_hooked(model: nn.Module) -> bool:
    """Whether hooks load weights of the model."""
    return any(hasattr(module, _HOOK) for module in model.modules())


def without_hooks(model: nn.Module) -> nn.Module:
    """The model itself, or if hooks load its weights, a copy of its modules without these hooks.

    The copy shares every tensor with the model; parameters and buffers that hooks load are :class:`Offloaded`. If the
    modules run on several devices, their inputs are moved there.
    """
    hooked = [module for module in model.modules() if hasattr(module, _HOOK)]
    if not hooked:
        return model
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in hooked:
        memo[id(getattr(module, _HOOK))] = None  # it has all the weights
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
    """The parts of a sequential hook, or the hook itself."""
    return [part for inner in hook.hooks for part in _hooks(inner)] if hasattr(hook, "hooks") else [hook]


def _take_over(module: nn.Module, hook: Any) -> None:
    """Replace the weights that ``hook`` loads into a module by offloaded ones."""
    inside = hook.place_submodules
    for path, tensor in [*module.named_parameters(recurse=inside), *module.named_buffers(recurse=inside)]:
        if tensor.is_meta:
            device = torch.device(hook.execution_device)
            put(module, path, Offloaded(tensor, device, _Reader(hook, path, tensor.dtype)))


def put(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer at ``path``; a parameter stays a parameter."""
    owner, _, name = path.rpartition(".")
    parent = module.get_submodule(owner)
    old = getattr(parent, name)
    setattr(parent, name, nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor)


def brought_in(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with all weights in memory, for compilers and files.

    Raises:
        InputError: for weights outside of the model, as memory may not suffice.
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
    """Moves the inputs of a module to its device."""

    device: torch.device

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), (args, kwargs))


@dataclass(frozen=True)
class _Reader:
    """Loads one weight of a hook."""

    hook: Any
    path: str
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        return self.hook.weights_map[self.path].to(self.hook.execution_device, self.dtype)
