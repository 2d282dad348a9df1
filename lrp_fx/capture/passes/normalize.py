"""Small normalizations of a captured graph: assertions dropped, operators spelled alike."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from lrp_fx.graph.dead_code import drop_dead
from lrp_fx.graph.module_calls import hand_on
from lrp_fx.operators.schema import is_assertion
from lrp_fx.operators.table import OpTable, bind

aten = torch.ops.aten


def drop_assertions(graph: fx.Graph) -> None:
    """Remove assertions; shapes and dtypes are checked once per call, by guards and the call's key."""
    for node in reversed(graph.nodes):
        if is_assertion(node):
            graph.erase_node(node)
    drop_dead(graph)


def drop_inert(graph: fx.Graph) -> None:
    """Remove dropout in evaluation mode, which returns its operand itself."""
    for node in list(graph.nodes):
        spec = OpTable.shipped().get(node) if node.op == "call_function" else None
        if spec is not None and "inert" in spec.extra and not bind(node)[spec.extra["inert"]]:
            operand = bind(node)[spec.args[0]]
            hand_on(node, operand)
            node.replace_all_uses_with(operand)
            graph.erase_node(node)


def mend(graph: fx.Graph) -> None:
    """Repair results of full functionalisation: ``view`` of a strided tensor, ``copy`` without a derivative."""
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


def see_through(graph: fx.Graph) -> None:
    """Replace ``detach`` by an alias, in graphs of an operator or a derivative, where no author wrote it."""
    for node in graph.nodes:
        if OpTable.shipped().form(node) == "detach":
            node.target = aten.alias.default


def spell_out(graph: fx.Graph) -> None:
    """``glu`` -> the product of a half with the sigmoid of the other."""
    for node in [n for n in graph.nodes if n.target is aten.glu.default]:
        x, dim = node.args[0], node.args[1] if len(node.args) > 1 else -1
        with graph.inserting_before(node):
            halves = graph.call_function(aten.chunk.default, (x, 2, dim))
            signal, gate = (graph.call_function(operator.getitem, (halves, i)) for i in range(2))
            weight = graph.call_function(aten.sigmoid.default, (gate,))
            product = graph.call_function(aten.mul.Tensor, (signal, weight))
        for new in (signal, gate, weight, product):
            new.meta = dict(node.meta)
        halves.meta = dict(node.meta) | {"val": (node.meta["val"], node.meta["val"])}
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def in_one_mode(graph: fx.Graph) -> None:
    """Recreate the fake values of a recorded run in one common mode, so that operators can mix them."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def moved(value: Any) -> Any:
        if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
            return value
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(moved, node.meta["val"])


def whole_batch_norms(graph: fx.Graph) -> None:
    """The functionalised ``batch_norm``, which also returns statistics -> ``batch_norm``: the same kernel."""
    for node in graph.find_nodes(op="call_function", target=aten._native_batch_norm_legit_no_training.default):
        for user in [user for user in node.users if not user.users]:  # statistics that nobody reads
            graph.erase_node(user)
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            continue
        *operands, momentum, eps = bind(node).values()
        with graph.inserting_before(node):
            new = graph.call_function(aten.batch_norm.default, (*operands, False, momentum, eps, False))
        new.meta = dict(node.meta) | {"val": node.meta["val"][0]}
        for user in list(node.users):
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        graph.erase_node(node)


_POOLS = {aten.adaptive_avg_pool1d.default: 1, aten.adaptive_avg_pool2d.default: 2, aten.adaptive_avg_pool3d.default: 3}


def pools_to_means(graph: fx.Graph) -> None:
    """Average pooling to one value -> ``mean``, by which PyTorch computes it, without its change of strides."""
    for node in list(graph.nodes):
        if node.target not in _POOLS:
            continue
        count = _POOLS[node.target]
        sizes = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        if all(isinstance(n, int) and n == 1 for n in sizes):
            node.target, node.args = aten.mean.dim, (node.args[0], list(range(-count, 0)), True)


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


def boolean_conditions(graph: fx.Graph) -> None:
    """Cast uint8 conditions of ``where`` to bool: kernels accept uint8, fake tensors do not."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.where.self):
        condition = node.args[0]
        if isinstance(condition, fx.Node) and condition.meta["val"].dtype is torch.uint8:
            with graph.inserting_before(node):
                new = graph.call_function(torch.ops.aten.ne.Scalar, (condition, 0))
            value = condition.meta["val"]
            new.meta = {**condition.meta, "val": value.new_empty(value.shape, dtype=torch.bool)}
            node.update_arg(0, new)
