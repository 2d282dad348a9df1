"""Linear layers that hide in operators of their own: products with weights packed into integers.

Such an operator takes constants, integers and their scales among them, and belongs to another library or autograd
knows no derivative of it. All else that it takes is made of one tensor: that tensor itself, or its rounding to integers
and their scales too. Whether the way from there to the product is linear is seen by trying
(``passes.linearity``). If so, it becomes an ordinary linear layer whose dense weight is unpacked when an
operator needs it, and let go of afterwards (:mod:`lrp_fx.capture.offload`). Rounding of the operand is left out, with a
warning: what is explained is the model that its weights stand for.
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

_MOST = 32  #: operators between a tensor and the product that it goes into
#: of an operator that wants other rows than those it is tried on, or that has no values to try
_REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AssertionError)


@dataclass(frozen=True)
class Step:
    """An operator on the way from operand to product.

    Attributes:
        node: the node it was.
        target: the operator.
        arguments: its (args, kwargs): nodes of what depends on the operand, and values of everything else.
    """

    node: Node
    target: Any
    arguments: Any


@dataclass(frozen=True)
class Packed:
    """The way from an operand to a product, as a function.

    Attributes:
        operand: the node of the one tensor that depends on the inputs.
        steps: what is computed from it, the product last.
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
        """What it makes of zero and the unit vectors."""
        operand = self.operand.meta["val"]
        return Affine(self, int(operand.shape[-1]), torch.empty(0, dtype=operand.dtype, device=operand.device))

    def linearity(self) -> Linearity:
        """Whether it is a linear layer, and none of PyTorch's known to autograd."""
        tensors = [t for step in self.steps for t in tensors_in(step.node.meta.get("val")) if t.is_floating_point()]
        try:
            if self._is_known():
                return Linearity.NONE
            return self.affine.linearity(max(torch.finfo(t.dtype).eps for t in tensors))
        except _REFUSALS:
            return Linearity.NONE

    def _is_known(self) -> bool:
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
                packed = _way(graph_module, result, reached)
                linearity = Linearity.NONE if packed is None else packed.linearity()
                if packed is not None and linearity is not Linearity.NONE:
                    rounded += [result] * (linearity is Linearity.ROUNDED)
                    _replace(graph_module, result, packed, next(numbers))
    graph.eliminate_dead_code()
    if rounded:
        warnings.warn(
            f"Products with packed weights round their operand as well ({len(rounded)}, the first in module "
            f"'{module_path(rounded[0]) or '<root>'}'). Explained is the model that has the same weights and does not "
            "round what they multiply: outputs differ by that rounding (verify() says how much).",
            stacklevel=2,
        )


def _results(node: Node, reached: set[Node]) -> Iterator[Node]:
    """What is computed with packed weights at a node: itself, or what is taken out of it."""
    if not isinstance(node.target, torch._ops.OpOverload) or node not in reached:
        return
    tensors = [t for n in node.all_input_nodes if n not in reached for t in tensors_in(n.meta.get("val"))]
    if len({t.is_floating_point() for t in tensors}) == 2:  # integers and their scales
        users = [] if isinstance(node.meta.get("val"), Tensor) else list(node.users)
        yield from (n for n in (node, *users) if _is_rows(n.meta.get("val")))


def _way(owner: fx.GraphModule, result: Node, reached: set[Node]) -> Packed | None:
    """From the nearest tensor that ``result`` is made of, and of nothing else but constants."""
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
    """Whether a linear layer could make ``result`` of ``given``."""
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
    parts = {f"_unpacked_{index}": nn.Parameter(Offloaded(like, operand.device, affine.weight, away=False), False)}
    bias = affine.bias()
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
