"""Float32 islands in a float64 model.

Many models compute norms and softmax in float32, whatever their own precision. In a float64 model the values must stay
the same, bit by bit, but sums of relevance would be exact to 1e-8 only. So every such island gets a float64 twin that
carries the relevance, while the values come from the island.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.module_calls import unnoted
from lrp_fx.graph.operands import dtype
from lrp_fx.operators.table import OpTable

aten = torch.ops.aten

_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def widen_islands(graph: fx.Graph) -> None:
    """Give every float32 region fed by float64 values a float64 twin, joined by :func:`exact_value` where it ends."""
    twins: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        fed = [n for n in node.all_input_nodes if n in twins]
        narrow = dtype(node) in _WIDE and (fed or _narrows(node))
        if narrow or (fed and isinstance(node.meta.get("val"), (tuple, list))):
            twins[node] = _twin(graph, node, twins)
        elif fed and dtype(node) is torch.float64:
            wide = _twin(graph, node, twins)
            joined = _join(graph, node if _is_cast(node) else wide, node, wide)
            node.replace_all_uses_with(joined, delete_user_cb=functools.partial(operator.is_not, joined))
    end = graph.output_node()
    for node in [n for n in end.all_input_nodes if n in twins and dtype(n) is torch.float32]:
        joined = _join(graph, end.prev, node, twins[node])
        node.replace_all_uses_with(joined, delete_user_cb=functools.partial(operator.is_, end))
    if twins:
        graph.eliminate_dead_code()


def _join(graph: fx.Graph, after: Node, node: Node, wide: Node) -> Node:
    with graph.inserting_after(after):
        joined = graph.call_function(exact_value, (node, wide))
    joined.meta = dict(node.meta)
    return joined


def _narrows(node: Node) -> bool:
    return any(dtype(n) is torch.float64 and n.op != "get_attr" for n in node.all_input_nodes)


def _is_cast(node: Node) -> bool:
    return OpTable.shipped().form(node) == "cast"


def _twin(graph: fx.Graph, node: Node, twins: dict[Node, Node]) -> Node:
    """The same operator on twins, in float64; the twin of a cast between the two precisions is its operand."""
    if _is_cast(node) and node.args:
        operand = node.args[0]
        return twins.get(operand, operand)  # type: ignore[arg-type, return-value]

    def wide(operand: Node) -> Node:
        if operand in twins:
            return twins[operand]
        if dtype(operand) not in _WIDE:
            return operand
        cast = graph.call_function(aten.to.dtype, (operand, _WIDE[operand.meta["val"].dtype]))
        cast.meta = unnoted(operand.meta) | {"val": _widened(operand.meta["val"])}
        return cast

    with graph.inserting_after(node):
        marker = graph.call_function(node.target, ())  # type: ignore[arg-type]  # a placeholder after the node; its arguments are set below
    with graph.inserting_before(marker):
        args, kwargs = fx.map_arg(node.args, wide), fx.map_arg(dict(node.kwargs), wide)
    marker.args, marker.kwargs = _in_double(args), _in_double(kwargs)
    val = node.meta.get("val")
    marker.meta = dict(node.meta) | {"val": torch.utils._pytree.tree_map(_widened, val)}
    return marker


def _widened(val: Any) -> Any:
    """A value in double precision.

    A fake tensor is created anew: casting it would read sizes, and each read adds a guard.
    """
    if not isinstance(val, Tensor) or val.dtype not in _WIDE:
        return val
    wide = _WIDE[val.dtype]
    if not isinstance(val, FakeTensor) or val.layout is not torch.strided:
        return val.to(wide)
    with val.fake_mode:
        return torch.empty_strided(val.shape, val.stride(), dtype=wide, device=val.device)


def _in_double(arguments: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(torch.float64 if a is torch.float32 else a for a in arguments)
    return {k: torch.float64 if a is torch.float32 else a for k, a in arguments.items()}
