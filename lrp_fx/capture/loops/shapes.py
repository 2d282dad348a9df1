"""Symbolic values of a graph's nodes, for given free dimensions of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lrp_fx.graph.loop import CapturedLoop, like_all_steps


def propagate(graph_module: fx.GraphModule, leaves: Sequence[Any], free: Sequence[Sequence[bool]]) -> None:
    """Fill ``meta["val"]`` of every node.

    Args:
        graph_module: the graph.
        leaves: example inputs, one for each placeholder.
        free: for each tensor among them, which of its dimensions are free.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    dims = iter(free)
    names = [str(n.target) for n in graph_module.graph.find_nodes(op="placeholder")]
    with symbolic_config.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
        inputs = [
            _symbolic(mode, leaf, name, next(dims)) if isinstance(leaf, Tensor) else leaf
            for leaf, name in zip(leaves, names, strict=True)
        ]
        with mode, enable_python_dispatcher():  # without it some kernels refuse symbolic sizes
            _Values(graph_module, mode).run(*inputs, enable_io_processing=False)


def _symbolic(mode: FakeTensorMode, tensor: Tensor, name: str, free: Sequence[bool]) -> Tensor:
    sizes = [DimDynamic.DUCK if is_free else DimDynamic.STATIC for is_free in free]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor.detach(), source=LocalSource(name, is_input=True), symbolic_context=context)


class _Values(fx.Interpreter):
    """Runs a graph on fake tensors and notes the value of every node."""

    def __init__(self, graph_module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph_module)
        self.mode = mode

    def run_node(self, n: Node) -> Any:
        if isinstance(n.target, CapturedLoop):
            step = _Values(n.target.body, self.mode).run
            operands = fx.map_arg(dict(n.kwargs), self.env.__getitem__)
            result = like_all_steps(step, n.target.outputs, **operands)  # type: ignore[arg-type]
        else:
            result = super().run_node(n)
        if n.op == "get_attr" and isinstance(result, Tensor):
            result = self.mode.from_tensor(result, static_shapes=True)
        elif n.op != "output":
            n.meta["val"] = result
        return result
