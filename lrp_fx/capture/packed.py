"""Linear layers that hide in operators of their own: products with weights packed into integers.

Such an operator takes one tensor that depends on the inputs, everything else it takes is constant, integers and their
scales among it, and it belongs to another library or autograd knows no derivative of it. Whether it is linear is seen
by trying: a linear layer is told by what it makes of the unit vectors. Where that foretells what it makes of other
vectors, it becomes an ordinary linear layer whose dense weight is unpacked when an operator needs it, and let go of
afterwards (:mod:`lrp_fx.capture.offload`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from lrp_fx.capture.offload import Offloaded
from lrp_fx.capture.values import Values

aten = torch.ops.aten


@dataclass(frozen=True)
class Packed:
    """An operator as a function of the one operand that depends on the inputs.

    Attributes:
        target: the operator.
        arguments: its (args, kwargs): the node of that operand, and values of everything else.
        operand: that node.
    """

    target: torch._ops.OpOverload
    arguments: Any
    operand: Node

    def __call__(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, features)."""
        shape = (*[1] * (self.operand.meta["val"].dim() - 2), *x.shape)
        args, kwargs = fx.map_arg(self.arguments, lambda _: x.reshape(shape))  # type: ignore[misc]
        return self.target(*args, **kwargs).reshape(len(x), -1)

    def bias(self) -> Tensor:
        """(features,): what it makes of zero."""
        return self(self._rows(torch.zeros(1, self.width)))[0]

    def weight(self) -> Tensor:
        """(features, width): what it makes of the unit vectors."""
        return (self(self._rows(torch.eye(self.width))) - self.bias()).t()

    @property
    def width(self) -> int:
        """Features of the operand."""
        return int(self.operand.meta["val"].shape[-1])

    def _rows(self, rows: Tensor) -> Tensor:
        return rows.to(self.operand.meta["val"])

    def is_linear(self) -> bool:
        """Whether the unit vectors foretell what it makes of others, and it is none of PyTorch's known to autograd."""
        rows = self._rows(torch.randn(3, self.width, generator=torch.Generator().manual_seed(0)))
        try:
            found = self(rows)
            foretold = nn.functional.linear(rows, self.weight(), self.bias())
            tolerance = 8 * torch.finfo(rows.dtype).eps * self.width**0.5
            near = float((found - foretold).abs().max()) <= tolerance * float(found.abs().max())
        except (RuntimeError, TypeError, IndexError):  # it wants other rows than these, or has no values to try
            return False
        return near and (self.target.namespace not in ("aten", "prims") or not self._has_derivative(rows))

    def _has_derivative(self, rows: Tensor) -> bool:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = rows.clone().requires_grad_()
            try:
                return torch.autograd.grad(self(x).sum(), x, allow_unused=True)[0] is not None
            except RuntimeError:
                return False


def unpack(graph_module: fx.GraphModule) -> None:
    """Replace products with packed weights by linear layers."""
    graph, constant = graph_module.graph, _constants(graph_module.graph)
    with torch.no_grad():
        for index, node in enumerate(list(graph.nodes)):
            packed = _candidate(graph_module, node, constant)
            if packed is not None and packed.is_linear():
                _replace(graph_module, node, packed, index)
    graph.eliminate_dead_code()


def _constants(graph: fx.Graph) -> set[Node]:
    """Nodes that depend on no input."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _candidate(owner: fx.GraphModule, node: Node, constant: set[Node]) -> Packed | None:
    value = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or not _floats(value):
        return None
    reads = node.all_input_nodes
    varying = [n for n in reads if n not in constant]
    held = [n.meta.get("val") for n in reads if n in constant]
    kinds = {v.is_floating_point() for v in held if isinstance(v, Tensor)}
    if len(varying) != 1 or len(kinds) < 2:  # integers and their scales
        return None
    given = varying[0].meta.get("val")
    widths = [t.shape[-1] for t in (given, value) if _floats(t)]  # type: ignore[union-attr]
    if len(widths) < 2 or not all(isinstance(width, int) for width in widths):
        return None
    values = Values.of(owner, {varying[0]: varying[0]})
    arguments = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return Packed(node.target, arguments, varying[0])


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def _replace(owner: fx.GraphModule, node: Node, packed: Packed, index: int) -> None:
    value, given = node.meta["val"], packed.operand.meta["val"]
    like = torch.empty(int(value.shape[-1]), packed.width, dtype=value.dtype, device="meta")
    parts = {f"_unpacked_{index}": nn.Parameter(Offloaded(like, given.device, packed.weight, away=False), False)}
    bias = packed.bias()
    if bool(bias.any()):
        parts[f"_bias_{index}"] = nn.Parameter(bias, False)
    with owner.graph.inserting_before(node):
        reads = []
        for name, part in parts.items():
            owner.register_parameter(name, part)
            reads.append(owner.graph.get_attr(name))
            reads[-1].meta["val"] = part
        new = owner.graph.call_function(aten.linear.default, (packed.operand, *reads))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    owner.graph.erase_node(node)
