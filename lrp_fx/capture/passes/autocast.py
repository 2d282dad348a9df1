"""Casts of autocast regions, written out: the graph computes without autocast what the model computed under it.

Autocast has a kernel for every operator that it casts. All floating operands of such an operator get one dtype, which
is that of its result. An operator without a kernel may be composed of operators that have one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture.passes.decompose import composite, put_in_place, traced_call, value_of
from lrp_fx.graph.module_calls import unnoted

aten = torch.ops.aten

_REGION = "autocast"  #: key of metadata: device type and dtype of the innermost region, None where autocast is off
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)  #: autocast leaves double precision alone


def mark_region(nodes: Iterable[Node], device: str, dtype: torch.dtype | None) -> None:
    """Note the autocast region of those nodes that are in no inner one. ``dtype``: None where autocast is off."""
    for node in nodes:
        if node.op == "call_function":
            node.meta.setdefault(_REGION, (device, dtype))


def mark_recorded(graph: fx.Graph) -> None:
    """Note the regions of a recorded graph, and remove the calls that enter and leave them.

    Under autocast of the caller, calls that turn it off stay: the graph runs under the caller's autocast.
    """
    entered: list[Node] = []
    ambient = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    for node in list(graph.nodes):
        if node.target is _enter_autocast:
            entered.append(node)
        elif node.target is _exit_autocast:
            enter = entered.pop()
            if enter.args[2] or not ambient:
                graph.erase_node(node)
                graph.erase_node(enter)
        elif entered:
            device, dtype, enabled = entered[-1].args[:3]
            mark_region([node], device, dtype if enabled else None)  # type: ignore[arg-type]


def write_casts(graph_module: fx.GraphModule) -> bool:
    """Write out the casts of all nodes in marked regions; returns whether there are any."""
    changed = False
    for node in list(graph_module.graph.nodes):
        device, dtype = node.meta.pop(_REGION, ("", None))
        if dtype is not None and isinstance(node.target, torch._ops.OpOverload):
            changed |= _write(graph_module, node, device, dtype)
    return changed


def _write(graph_module: fx.GraphModule, node: Node, device: str, dtype: torch.dtype) -> bool:
    target: Any = node.target
    if torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), f"Autocast{device.upper()}"):
        return _cast_operands(graph_module, node)
    if not target._can_decompose() or _promoted(graph_module, node) is _dtype(node.meta.get("val")):
        return False
    try:
        traced = traced_call(graph_module, node, functools.partial(composite, target), torch.autocast(device, dtype))
    except Exception:  # a kernel that reads values, or that knows no symbolic sizes
        return False
    mark_region(traced.graph.nodes, device, dtype)
    if changed := write_casts(traced):
        put_in_place(graph_module, node, traced)
    return changed


def _cast_operands(graph_module: fx.GraphModule, node: Node) -> bool:
    """Cast the floating operands of a node to the dtype of its result."""
    dtype = _dtype(node.meta.get("val"))
    if dtype is None:
        return False
    values = {n: value_of(graph_module, n) for n in node.all_input_nodes}
    others = [n for n, value in values.items() if _dtype(value) not in (None, dtype)]
    for operand in others:
        with graph_module.graph.inserting_before(node):
            cast = graph_module.graph.call_function(aten.to.dtype, (operand, dtype))
        cast.meta = unnoted(node.meta) | {"val": values[operand].detach().to(dtype)}
        node.replace_input_with(operand, cast)
    return bool(others)


def _promoted(graph_module: fx.GraphModule, node: Node) -> torch.dtype | None:
    """The dtype that the operands have in common without autocast."""
    dtypes = [d for n in node.all_input_nodes if (d := _dtype(value_of(graph_module, n))) is not None]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else None


def _dtype(value: Any) -> torch.dtype | None:
    """The dtype of the first tensor that autocast may cast."""
    dtypes = (v.dtype for v in pytree.tree_leaves(value) if isinstance(v, Tensor) and v.dtype in _FLOATS)
    return next(dtypes, None)
