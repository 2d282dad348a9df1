"""From a traced function to a module: attributes attached, inputs named, constants folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.contracts import Stage, check_stage
from lrp_fx.graph.attribute_paths import attribute, readable
from lrp_fx.operators.table import OpTable
from lrp_fx.passes.hoist_slices import sizes_from_inputs

_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def assembled(
    traced: fx.GraphModule, outputs: Any, attributes: Mapping[str, Tensor], names: Sequence[str]
) -> fx.GraphModule:
    """A module with the inputs ``names`` that returns ``outputs`` and shares the tensors in ``attributes``.

    No constant is folded yet.

    Args:
        traced: its placeholders are the attributes, then the inputs.
        outputs: nested dicts and lists of its nodes.
        attributes: path -> tensor.
        names: names of the inputs.
    """
    old = [n for n in traced.graph.nodes if n.op == "placeholder"]
    root: dict[str, Any] = dict(attributes)
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            root[str(node.target)] = attribute(traced, node)
    graph = fx.Graph()
    env: dict[Node, Node] = {}
    for node, name in zip(old[len(attributes) :], names, strict=True):
        env[node] = graph.placeholder(name)
        env[node].meta = dict(node.meta)
    for node, name in zip(old, attributes, strict=False):
        env[node] = graph.get_attr(readable(name))
        env[node].meta = dict(node.meta)
    for node in traced.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(fx.map_arg(outputs, env.__getitem__))
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):
        node.replace_all_uses_with(node.args[0])  # nothing is differentiated any more
    graph.eliminate_dead_code()
    sizes_from_inputs(graph)
    return fx.GraphModule(_nested(root), graph, class_name="RelevanceGraph")


def finished(module: fx.GraphModule) -> fx.GraphModule:
    """Fold the constants of a module, and check it against the contract of this stage."""
    fold_constants(module)
    free_views(module.graph)
    module.graph.lint()
    module.recompile()
    check_stage("lowering", Stage(module, OpTable.shipped()))
    return module


def free_views(graph: fx.Graph) -> None:
    """Replace ``view`` by ``reshape``: a kernel may return other strides than its fake kernel, and view would fail."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default


def _nested(attributes: Mapping[str, Any]) -> torch.nn.Module:
    """A module with every attribute under its path."""
    root = torch.nn.Module()
    for path, value in attributes.items():
        *parents, name = path.split(".")
        owner = root
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, torch.nn.Module())
            owner = getattr(owner, parent)
        if isinstance(value, torch.nn.Parameter):
            owner.register_parameter(name, value)
        elif isinstance(value, Tensor):
            owner.register_buffer(name, value)
        else:
            setattr(owner, name, value)
    return root


def fold_constants(graph_module: fx.GraphModule, limit: int = 1 << 20) -> int:
    """Fold nodes that depend on no input: masks, rotary tables and slopes of fixed size.

    Nodes that depend on a parameter are not folded (that would copy weights), nor are values of more than ``limit``
    entries. Returns the number of folded operators.
    """
    graph = graph_module.graph
    constant: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = attribute(graph_module, node)
            if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and not value.is_meta:
                constant[node] = value
        elif node.op == "call_function" and _pure(node) and all(n in constant for n in node.all_input_nodes):
            value = node.meta.get("val")
            if isinstance(value, Tensor) and (value.is_meta or any(isinstance(d, torch.SymInt) for d in value.shape)):
                continue
            if isinstance(value, Tensor) and value.numel() > limit:
                continue
            args, kwargs = fx.map_arg(node.args, constant.get), fx.map_arg(dict(node.kwargs), constant.get)
            with torch.no_grad():
                constant[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and isinstance(constant.get(node), Tensor):
            count += 1
            if any(user not in constant or user.op == "output" for user in node.users):
                name = f"_folded_{node.name}"
                graph_module.register_buffer(name, constant[node].contiguous())
                with graph.inserting_before(node):
                    new = graph.get_attr(name)
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    return count


def _pure(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in node.target.tags
