"""Values of nodes that depend on constants alone: masks, identity matrices, positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.dimensions import example_size
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.schema import has_tag, is_mutating

_LARGEST = 1 << 22  #: largest number of entries of a tensor to compute


def constant_value(node: Node) -> Tensor | None:
    """The value of a tensor that depends on no input and no parameter, at the sizes of the example inputs.

    None for other nodes, for random tensors, and if a tensor in between has more than ``_LARGEST`` entries.
    """
    values: dict[Node, Tensor | int | float] = {}
    needed = _ancestors(node)
    if needed is None:
        return None
    with torch.no_grad():
        for current in needed:
            size = current.meta.get("val")
            if isinstance(size, (int, float, torch.SymInt)):
                values[current] = example_size(size) if isinstance(size, torch.SymInt) else size
            elif current.op == "get_attr":
                values[current] = attribute(current.graph.owning_module, current)  # type: ignore[arg-type]
            else:
                args, kwargs = fx.map_arg((current.args, dict(current.kwargs)), values.__getitem__)  # type: ignore[misc]
                values[current] = current.target(*args, **kwargs)  # type: ignore[operator]
    result = values[node]
    return result if isinstance(result, Tensor) and not result.is_meta else None


def _ancestors(node: Node) -> list[Node] | None:
    """The node and everything that it depends on, in order; None if one of these is no small constant."""

    def operands(n: Node) -> list[Node]:
        return n.all_input_nodes if isinstance(n.meta.get("val"), Tensor) else []  # a size needs no operands

    needed = []
    for current in upstream([node], operands):
        if not _is_small_constant(current):
            return None
        needed.append(current)
    return sorted(needed)


def _is_small_constant(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, (int, float, torch.SymInt)):
        return True
    if not isinstance(value, Tensor) or math.prod(map(example_size, value.shape)) > _LARGEST:
        return False
    if node.op == "get_attr":
        return not isinstance(attribute(node.graph.owning_module, node), torch.nn.Parameter)  # type: ignore[arg-type]
    return node.op == "call_function" and not is_mutating(node) and not has_tag(node, torch.Tag.nondeterministic_seeded)
