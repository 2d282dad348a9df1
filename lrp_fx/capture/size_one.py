"""Sizes of one: whether a graph that was traced at larger sizes is valid if a dimension has size one.

Branches of the model on sizes are guards (:mod:`lrp_fx.capture.guards`). Operators remain: export assumes, without a
guard, that they do not broadcast or squeeze. So the graph is run on fake tensors of the actual sizes. If every value
has the shape in the captured graph, the model would see the same shapes and call the same operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.errors import first_line
from lrp_fx.graph.loop import CapturedLoop, like_all_steps


class _Differs(Exception):
    """A value has another shape than in the captured graph."""


class _Shaped(fx.Interpreter):
    """Runs a graph on fake tensors and compares all sizes with the formulas in the graph."""

    def __init__(self, graph_module: fx.GraphModule, sizes: Mapping[str, int]) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.sizes = sizes

    def run_node(self, n: Node) -> Any:
        value = self._loop(n, n.target) if isinstance(n.target, CapturedLoop) else super().run_node(n)
        if n.op == "call_function" and "val" in n.meta:
            for noted, real in zip(_sizes(n.meta["val"]), _sizes(value), strict=True):
                if self._at(noted) != real:
                    raise _Differs(f"{n.name} has a size of {real} on these inputs, and of {noted} in the graph")
        return value

    def _loop(self, node: Node, loop: CapturedLoop) -> Any:
        """The result of a loop, from one step if the state keeps its form."""
        operands: Any = fx.map_arg(dict(node.kwargs), self.env.__getitem__)  # type: ignore[arg-type]
        result = like_all_steps(loop.body.forward, loop.outputs, **operands)
        states = zip(loop.reads_state(len(operands["x"])), operands["state"], result[loop.outputs :], strict=True)
        same = all(_form(before) == _form(after) for is_read, before, after in states if is_read)
        return result if same else super().run_node(node)

    def _at(self, size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        return int(expression.xreplace({s: self.sizes[s.name] for s in expression.free_symbols}))


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype


def _sizes(value: Any) -> list[Any]:
    """All sizes in a value, with the rank of each tensor before them."""
    sizes: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            sizes += [leaf.dim(), *leaf.shape]
        elif isinstance(leaf, (int, torch.SymInt)) and not isinstance(leaf, bool):
            sizes.append(leaf)
    return sizes


def unproven(graph_module: fx.GraphModule, leaves: Sequence[Any], sizes: Mapping[str, int]) -> str | None:
    """Why a graph is not proven for inputs of these sizes; None if every value has the shape in the graph.

    Args:
        graph_module: the captured graph.
        leaves: flat inputs; of tensors only sizes and dtypes are read.
        sizes: name -> size.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        fakes = [
            torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        try:
            _Shaped(graph_module, sizes).run(*fakes, enable_io_processing=False)
        except Exception as error:  # operators that reject these sizes may raise anything
            return f"it is not proven for sizes of one: {first_line(error)}"
    return None
