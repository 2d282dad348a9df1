"""Explanations of one position of a sequence of logits: the head runs at that position only.

A language model's head is as large as several of its layers, and an explanation reads one position of its output. The
positions are further inputs of the graph, so that one graph serves all positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Captured
from lrp_fx.capture.size_formulas import Unstorable, evaluate, formula
from lrp_fx.explain.reading import Reading
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.lazy_module import lazy_module
from lrp_fx.graph.operands import all_slots
from lrp_fx.graph.reach import upstream
from lrp_fx.operators.table import OpTable
from lrp_fx.passes.hoist_slices import behind_selection, positional, sizes_from_inputs

_POSITION = 2  #: leading dimensions that a position of a sequence of logits indexes: samples and positions


@dataclass(frozen=True)
class Rows:
    """A tapped graph that computes the logits of one position of every sample.

    Attributes:
        graph_module: (flat inputs, (B, 1) samples, (B, 1) positions) -> ((B, 1, C) logits, sources, latents).
        captured: the capture.
        sizes: batch and length of the full logits, as formulas in the sizes of the inputs.
    """

    graph_module: fx.GraphModule
    captured: Captured
    sizes: tuple[Any, Any]

    @classmethod
    def of(cls, captured: Captured, tapped: fx.GraphModule, reading: Reading, ops: OpTable) -> Rows | None:
        """The graph for a model's logits; None for other outputs, and if no choice can move in front of the head."""
        example = reading.example
        if reading.leaf is None or example is None or reading.kind(example) != "sequence":
            return None
        try:
            sizes = [formula(d.node.expr) if isinstance(d, torch.SymInt) else int(d) for d in example.shape[:2]]
        except Unstorable:
            return None
        graph_module = _at_positions(tapped, ops, reading.leaf)
        return None if graph_module is None else cls(graph_module, captured, (sizes[0], sizes[1]))

    def shape(self, leaves: Sequence[Any]) -> tuple[int, int] | None:
        """Batch and length of the logits for flat inputs; None if they depend on values."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        try:
            bound = self.captured.shapes.bound(tensors)
            return int(evaluate(self.sizes[0], bound)), int(evaluate(self.sizes[1], bound))
        except KeyError:
            return None

    def run(self, leaves: Sequence[Any], positions: Tensor) -> tuple[Tensor, Any, Any]:
        """(logits (B, C) at the positions (B,), sources, latents)."""
        samples = torch.arange(len(positions), device=positions.device)[:, None]
        (logits,), sources, latents = self.graph_module(*leaves, samples, positions[:, None])
        return logits.squeeze(1), sources, latents


def _at_positions(tapped: fx.GraphModule, ops: OpTable, leaf: int) -> fx.GraphModule | None:
    """A tapped graph that selects positions, as far up as operators are independent of position.

    None if the selection cannot move above the operator that computes the logits.
    """
    graph, _ = copy_graph(tapped.graph)
    graph.owning_module = tapped  # for the purity of called modules
    end: Any = graph.output_node()
    leaves, sources, latents = end.args[0]
    logits = pytree.tree_leaves(leaves)[leaf]
    value = logits.meta.get("val")
    mode = getattr(value, "fake_mode", None)
    if mode is None or not isinstance(value, Tensor):
        return None
    with mode:
        index = torch.zeros(value.shape[:1], dtype=torch.int64, device=value.device)[:, None]
        row = torch.ops.aten.index.Tensor(value, [index, index])
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        positions = graph.placeholder("explained_positions")
        samples = graph.placeholder("explained_samples")
    samples.meta["val"] = positions.meta["val"] = index
    with graph.inserting_before(end):
        chosen = graph.call_function(torch.ops.aten.index.Tensor, (logits, [samples, positions]))
    chosen.meta = {k: v for k, v in logits.meta.items() if k in ("nn_module_stack", "stack_trace")} | {"val": row}
    end.args = (([chosen], sources, latents),)
    graph.eliminate_dead_code()
    with mode, torch.no_grad(), enable_python_dispatcher():
        _complete(logits, ops)
    sizes_from_inputs(graph)
    behind_selection(graph, ops)
    if any(node is logits for node in graph.nodes):
        return None
    graph.lint()
    return lazy_module(tapped, graph, "RowsGraph")


def _complete(top: Node, ops: OpTable) -> None:
    """Compute example values for nodes that rules added, as far up as a selection of positions may move."""
    pending = {top}
    while pending:
        node = max(pending)  # the last one: each is visited once
        pending.remove(node)
        for each in (node, *node.all_input_nodes):
            _compute(each)
        operands = positional(node, _POSITION, ops)
        if operands is not None:
            pending |= {all_slots(node)[slot] for slot in operands}
        elif ops.form(node) is not None:  # between a layer and its attention, whose queries may be selected
            pending |= set(node.all_input_nodes)


def _without_value(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.op == "call_function" and "val" not in node.meta]


def _compute(last: Node) -> None:
    """Compute the example value of a node, and of those in front of it that have none."""
    without = upstream(_without_value([last]), lambda n: _without_value(n.all_input_nodes))
    for node in sorted(without):
        if any("val" not in n.meta for n in node.all_input_nodes):
            continue
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
        with contextlib.suppress(Exception):  # operators that read values stay in place
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
