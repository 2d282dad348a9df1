"""Quantised linear layers: opaque operators that multiply by weights packed into integers.

Such an operator takes constants (integers and their scales), and belongs to another library or has no derivative. Its
only other input is a single activation tensor, possibly quantised on the fly (integers plus scales). Trials find out
whether the path from that tensor to the product is linear (``passes.linearity``). If so, it becomes an ordinary linear
layer, whose dense weight is unpacked for each operator and freed afterwards (:mod:`lrp_fx.capture.offload`). The
rounding of the operand is left out, with a warning: the explained model has the same weights without that rounding.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from lrp_fx.capture.offload import Offloaded
from lrp_fx.capture.passes.linearity import Affine, Linearity
from lrp_fx.graph.location import module_path
from lrp_fx.graph.reach import from_inputs
from lrp_fx.graph.values import Values, tensors_in
from lrp_fx.operators.schema import is_mutating

aten = torch.ops.aten

_MOST = 32  #: limit on operators between a tensor and the product
#: errors of operators that do not accept the trial rows, or have no values
_REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AssertionError)


@dataclass(frozen=True)
class Step:
    """An operator on the path from operand to product.

    Attributes:
        node: its node.
        target: the operator.
        arguments: (args, kwargs), with nodes that depend on the operand, and values for all others.
    """

    node: Node
    target: Any
    arguments: Any


@dataclass(frozen=True)
class Packed:
    """The path from an operand to a product, as a function.

    Attributes:
        operand: the only node of the path that depends on the inputs.
        steps: the operators of the path, the product last.
    """

    operand: Node
    steps: tuple[Step, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, features)."""
        values: dict[Node, Any] = {self.operand: x.reshape(*[1] * (self.operand.meta["val"].dim() - 2), *x.shape)}
        for step in self.steps:
            args, kwargs = fx.map_arg(step.arguments, values.__getitem__)  # type: ignore[misc]
            values[step.node] = step.target(*args, **kwargs)
        return values[self.steps[-1].node].reshape(len(x), -1)

    @property
    def affine(self) -> Affine:
        """The affine function that agrees with it on zero and the unit vectors."""
        operand = self.operand.meta["val"]
        return Affine(self, int(operand.shape[-1]), torch.empty(0, dtype=operand.dtype, device=operand.device))

    def linearity(self) -> Linearity:
        """Its linearity; NONE if it consists of PyTorch operators with a derivative, which need no replacement."""
        tensors = [t for step in self.steps for t in tensors_in(step.node.meta.get("val")) if t.is_floating_point()]
        try:
            if self._is_differentiable():
                return Linearity.NONE
            return self.affine.linearity(max(torch.finfo(t.dtype).eps for t in tensors))
        except _REFUSALS:
            return Linearity.NONE

    def _is_differentiable(self) -> bool:
        targets = [step.target for step in self.steps if isinstance(step.target, torch._ops.OpOverload)]
        return all(t.namespace in ("aten", "prims") for t in targets) and self._has_derivative()

    def _has_derivative(self) -> bool:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = self.affine.rows(torch.ones(3, self.affine.width)).requires_grad_()
            try:
                return torch.autograd.grad(self(x).sum(), x, allow_unused=True)[0] is not None
            except RuntimeError:
                return False


def unpack(graph_module: fx.GraphModule) -> None:
    """Replace products with packed weights by linear layers."""
    graph, reached = graph_module.graph, from_inputs(graph_module.graph)
    numbers, rounded = itertools.count(), list[Node]()
    with torch.no_grad():
        for node in list(graph.nodes):
            for result in _results(node, reached):
                packed = _path(graph_module, result, reached)
                linearity = Linearity.NONE if packed is None else packed.linearity()
                if packed is not None and linearity is not Linearity.NONE:
                    rounded += [result] * (linearity is Linearity.ROUNDED)
                    _replace(graph_module, result, packed, next(numbers))
    if next(numbers):
        graph.eliminate_dead_code()
    if rounded:
        warnings.warn(
            f"Products with packed weights round their operand as well ({len(rounded)}, the first in module "
            f"'{module_path(rounded[0]) or '<root>'}'). The explained model has the same weights without that "
            "rounding: outputs differ by it (verify() reports how much).",
            stacklevel=2,
        )


def _results(node: Node, reached: set[Node]) -> Iterator[Node]:
    """The results of a node with packed weights: the node itself, or its items."""
    if not isinstance(node.target, torch._ops.OpOverload) or node not in reached:
        return
    tensors = [t for n in node.all_input_nodes if n not in reached for t in tensors_in(n.meta.get("val"))]
    if len({t.is_floating_point() for t in tensors}) == 2:  # integers and their scales
        users = [] if isinstance(node.meta.get("val"), Tensor) else list(node.users)
        yield from (n for n in (node, *users) if _is_rows(n.meta.get("val")))


def _path(owner: fx.GraphModule, result: Node, reached: set[Node]) -> Packed | None:
    """The path to ``result`` from the nearest tensor that it depends on beside constants; None if there is none."""
    value, steps, reads = result.meta["val"], [result], _varying(result, reached)
    while len(reads) != 1 or not _is_operand(next(iter(reads)).meta.get("val"), value):
        latest = max(reads, default=None)  # nodes compare by their place in the graph
        if latest is None or latest.op != "call_function" or is_mutating(latest) or len(steps) == _MOST:
            return None
        steps.append(latest)
        reads = (reads - {latest}) | _varying(latest, reached)
    copies = {node: node for node in (*reads, *steps)}
    values = Values.of(owner, copies)
    chain = tuple(Step(n, n.target, fx.map_arg((n.args, dict(n.kwargs)), values.__getitem__)) for n in reversed(steps))
    return Packed(reads.pop(), chain)


def _varying(node: Node, reached: set[Node]) -> set[Node]:
    return {n for n in node.all_input_nodes if n in reached}


def _is_operand(tensor: Any, result: Tensor) -> bool:
    """Whether ``tensor`` could be the operand of a linear layer with this result."""
    return _is_rows(tensor) and tensor.dtype is result.dtype and tensor.dim() == result.dim()


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() >= 2
        and isinstance(value.shape[-1], int)
    )


def _replace(owner: fx.GraphModule, node: Node, packed: Packed, index: int) -> None:
    value, operand, affine = node.meta["val"], packed.operand.meta["val"], packed.affine
    like = torch.empty(int(value.shape[-1]), affine.width, dtype=value.dtype, device="meta")
    parameters = {f"_unpacked_{index}": nn.Parameter(Offloaded(like, operand.device, affine.weight, away=False), False)}
    bias = affine.bias()
    if bool(bias.any()):
        parameters[f"_bias_{index}"] = nn.Parameter(bias, False)
    with owner.graph.inserting_before(node):
        reads = []
        for name, parameter in parameters.items():
            owner.register_parameter(name, parameter)
            reads.append(owner.graph.get_attr(name))
            reads[-1].meta["val"] = parameter
        new = owner.graph.call_function(aten.linear.default, (packed.operand, *reads))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    owner.graph.erase_node(node)
