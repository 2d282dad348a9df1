"""Inputs and outputs of module calls, noted in the metadata of nodes while a graph is traced.

A module that returns its input unchanged has no node, so its place cannot be read off the graph afterwards. Hooks on
every module call write the place to the metadata of the traced nodes; they do not change the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

CALLS = "lrp_calls"  #: meta key of a node: the module calls that it is an input or an output of
_CARRIED = "custom"  #: meta key that torch's own passes carry along


class Place(NamedTuple):
    """An input or output tensor of a module call.

    Attributes:
        path: path of the module.
        call: number of the call of that module, from 0.
        returned: whether it is an output of the module; otherwise it is an input.
        leaf: its index among the tensors of the inputs or outputs.
    """

    path: str
    call: int
    returned: bool
    leaf: int


def places(node: Node) -> list[Place]:
    """The module inputs and outputs that ``node`` computes."""
    return [Place(*place) for place in node.meta.get(CALLS, ())]


def paths_of_attribute(model: torch.nn.Module, name: str) -> list[str]:
    """Paths of the module that ``name`` reads as an attribute: a library may give a module other names than its path.

    Args:
        model: the model.
        name: names of attributes, separated by dots; what follows "@" is kept at the paths.
    """
    dotted, at, part = name.partition("@")
    try:
        module = operator.attrgetter(dotted)(model)
    except Exception:  # attributes may be computed by any code
        return []
    if not isinstance(module, torch.nn.Module):
        return []
    return [path + at + part for path, other in model.named_modules(remove_duplicate=False) if other is module]


class ModuleCall(NamedTuple):
    """One call of a module.

    Attributes:
        module: the module.
        arguments: the nodes of its tensor inputs; None for a tensor that is not traced.
        results: the nodes of its tensor outputs.
    """

    module: torch.nn.Module
    arguments: Sequence[Node | None]
    results: Sequence[Node | None]


class Notes:
    """The module calls of one traced run of a model.

    Attributes:
        calls: the calls, in the order of their ends.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls: list[ModuleCall] = []
        self._paths: dict[int, list[str]] = {}
        self._counts: dict[str, int] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            # export calls a stand-in that shares the attributes
            self._paths.setdefault(id(vars(module)), []).append(name)

    def add(self, call: ModuleCall) -> None:
        """Write the places of a call to the nodes of its inputs and outputs."""
        self.calls.append(call)
        for path in self._paths.get(id(vars(call.module)), ()):
            number = self._counts[path] = self._counts.get(path, -1) + 1
            for returned, nodes in ((False, call.arguments), (True, call.results)):
                for leaf, node in enumerate(nodes):
                    if node is not None:
                        _note(node, [Place(path, number, returned, leaf)])


@contextmanager
def noting_calls(model: torch.nn.Module) -> Iterator[Notes]:
    """In this context, nodes traced from a run of ``model`` get the places of its module calls."""
    notes = Notes(model)
    open_calls: list[list[Node | None]] = []  # positional arguments of the calls under way

    def enter(module: torch.nn.Module, args: Any) -> None:
        if get_proxy_mode() is not None:  # not another thread, nor a run aside
            open_calls.append(_nodes(args))

    def leave(module: torch.nn.Module, args: Any, *keywords_and_output: Any) -> None:  # no keywords after an error
        if get_proxy_mode() is not None:
            *keywords, output = keywords_and_output
            notes.add(ModuleCall(module, [*open_calls.pop(), *_nodes(keywords)], _nodes(output)))

    with ExitStack() as hooks:
        hooks.callback(register_module_forward_pre_hook(enter).remove)
        hooks.callback(register_module_forward_hook(leave, with_kwargs=True, always_call=True).remove)
        yield notes


def _nodes(value: Any) -> list[Node | None]:
    """The nodes that compute the tensors in ``value``."""
    mode = get_proxy_mode()
    if mode is None:
        return []
    slots: list[Any] = [
        get_proxy_slot(leaf, mode.tracer, None, lambda p: p)
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor)
    ]
    return [None if slot is None else slot.proxy.node for slot in slots]


def note(node: Node, key: str, value: Any) -> None:
    """Note a plain value in metadata that PyTorch's passes carry along."""
    node.meta[_CARRIED] = {**node.meta.get(_CARRIED, {}), key: value}


def noted(node: Node, key: str) -> Any:
    """The value that was noted under a key; None without one."""
    return node.meta.get(_CARRIED, {}).get(key)


def forget(node: Node, key: str) -> None:
    """Remove a note."""
    node.meta[_CARRIED] = {k: v for k, v in node.meta.get(_CARRIED, {}).items() if k != key}


def _note(node: Node, further: list[Any]) -> None:
    note(node, CALLS, [*(noted(node, CALLS) or ()), *map(list, further)])


def hand_on(node: Node, to: Node) -> None:
    """Copy the places of ``node`` to its replacement."""
    if calls := noted(node, CALLS):
        _note(to, calls)


def unnoted(meta: dict[str, Any]) -> dict[str, Any]:
    """A copy of node metadata without places, for auxiliary nodes."""
    custom = {k: v for k, v in meta.get(_CARRIED, {}).items() if k != CALLS}
    return {k: v for k, v in meta.items() if k not in (_CARRIED, CALLS)} | ({_CARRIED: custom} if custom else {})


def settle(graph: fx.Graph) -> None:
    """After a capture: move the places out of ``meta["custom"]``, which passes of torch copy to new nodes."""
    for node in graph.nodes:
        if calls := noted(node, CALLS):
            node.meta = unnoted(node.meta) | {CALLS: calls}
