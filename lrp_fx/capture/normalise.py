"""From an exported graph to a plain one: regions inlined, assertions dropped, in-place operators made functional."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.errors import CaptureError, locate

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_DROPOUT = {
    aten.dropout.default,
    aten.alpha_dropout.default,
    aten.feature_dropout.default,
    aten.feature_alpha_dropout.default,
}
_REGIONS = {  # higher-order op -> position of its submodule among the arguments
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
}


def inline_regions(graph_module: fx.GraphModule) -> None:
    """Splice the bodies of no-grad and disabled-autocast regions into the graph that calls them.

    What a node is follows from the values it computes; whether its author wanted a gradient there does not matter.
    """
    for node in list(graph_module.graph.nodes):
        name = node.target.name() if isinstance(node.target, torch._ops.HigherOrderOperator) else None
        if name not in _REGIONS:
            continue
        position = _REGIONS[name]
        if name == "wrap_with_autocast" and node.args[2]:
            raise CaptureError(f"an enabled autocast region inside the model: {locate(node)}; cast the model instead")
        body = graph_module.get_submodule(str(node.args[position].target))
        assert isinstance(body, fx.GraphModule)
        inline_regions(body)
        _splice(graph_module, node, body, list(node.args[position + 1 :]))
    graph_module.graph.eliminate_dead_code()


def _splice(owner: fx.GraphModule, call: Node, body: fx.GraphModule, arguments: list[Any]) -> None:
    env: dict[Node, Any] = {}
    feed = iter(arguments)
    with owner.graph.inserting_before(call):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                env[inner] = next(feed)
            elif inner.op == "output":
                result = fx.map_arg(inner.args[0], env.__getitem__)
                for user in list(call.users):
                    user.replace_all_uses_with(result[user.args[1]])
                    owner.graph.erase_node(user)
            else:
                if inner.op == "get_attr":
                    raise CaptureError(f"a constant inside a nested region: {locate(inner)}")
                env[inner] = owner.graph.node_copy(inner, env.__getitem__)
    owner.graph.erase_node(call)


def drop_assertions(graph: fx.Graph) -> None:
    """Remove nodes that only check (shapes and dtypes are checked once per call, by the signature)."""
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def drop_inert(graph: fx.Graph) -> None:
    """Remove dropout in evaluation mode: it hands on its operand itself, memory and all."""
    for node in list(graph.nodes):
        if node.target in _DROPOUT and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _schema(node: Node) -> Any:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def is_mutating(node: Node) -> bool:
    """Whether the operator writes into one of its arguments."""
    schema = _schema(node)
    return bool(schema and schema.is_mutable)


def _may_alias(node: Node) -> bool:
    """Whether the result may share memory with an operand: declared views, and composites that decide at run time."""
    schema = _schema(node)
    if schema is None:
        return node.target is operator.getitem
    name = str(node.target.overloadpacket)  # type: ignore[union-attr]
    composites = (
        "reshape",
        "contiguous",
        "to",
        "flatten",
        "dropout",
        "type_as",
        "expand_as",
        "chunk",
        "split",
        "unflatten",
    )
    return any(r.alias_info for r in schema.returns) or name.removeprefix("aten.") in composites


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """``add_`` -> ``add``, same overload; None where there is none."""
    packet = getattr(getattr(torch.ops, target.namespace), target._opname.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None and target._opname.endswith("_") else None


def _shares_memory_later(node: Node, order: dict[Node, int]) -> bool:
    """Whether any alias of what ``node`` writes to, other than through the written value itself, is read after it."""
    written = node.args[0]
    assert isinstance(written, Node)
    base = written
    while _may_alias(base) and base.all_input_nodes:
        base = base.all_input_nodes[0]
    if base.op in ("placeholder", "get_attr"):
        return True
    family, stack = {base}, [base]
    while stack:
        for user in stack.pop().users:
            if user not in family and _may_alias(user) and not is_mutating(user):
                family.add(user)
                stack.append(user)
    family.discard(written)
    return any(order[user] > order[node] for member in family for user in member.users)


def functionalise(graph_module: fx.GraphModule) -> bool:
    """Replace in-place operators by their functional twins where nobody else sees the memory they write to.

    Returns:
        False where a written tensor is seen through another view: the caller then asks torch for a full
        functionalisation, which costs more than the export itself.
    """
    graph = graph_module.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    mutating = [node for node in graph.nodes if is_mutating(node)]
    if any(_functional(n.target) is None or _shares_memory_later(n, order) for n in mutating):
        return False
    for node in mutating:
        written = node.args[0]
        node.target = _functional(node.target)
        written.replace_all_uses_with(node, delete_user_cb=lambda user, n=node: order[user] > order[n])
    return True


def mend(graph: fx.Graph) -> None:
    """Undo what full functionalisation breaks: ``view`` of a strided tensor, ``copy`` without a derivative."""
    for node in list(graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.copy.default:
            target, source = node.args[:2]
            with graph.inserting_before(node):
                cast = graph.call_function(aten.type_as.default, (source, target))
                grown = graph.call_function(aten.expand_as.default, (cast, target))
            for new in (cast, grown):
                new.meta = dict(node.meta)
            cast.meta["val"] = source.meta["val"].to(target.meta["val"].dtype)
            node.replace_all_uses_with(grown)
            graph.erase_node(node)


def split_moments(graph: fx.Graph) -> None:
    """``var_mean``/``std_mean`` -> two operators: one homogeneous of degree 2 or 1, one linear."""
    first = {aten.var_mean.correction: aten.var.correction, aten.std_mean.correction: aten.std.correction}
    for node in list(graph.nodes):
        if node.target not in first:
            continue
        dims, keep = (node.args[1] if len(node.args) > 1 else None), node.kwargs.get("keepdim", False)
        for user in list(node.users):
            with graph.inserting_before(user):
                if user.args[1] == 0:
                    new = graph.call_function(first[node.target], node.args, dict(node.kwargs))
                else:
                    new = graph.call_function(aten.mean.dim, (node.args[0], dims, keep))
            new.meta = dict(user.meta)
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        graph.erase_node(node)
