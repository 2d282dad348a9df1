"""The repeated blocks of a graph, found from the graph alone.

A network of N equal layers is one sequence of operators N times. Every operator gets a label (its target, its literal
arguments, the shape of its value); a sequence of labels that repeats without a gap is a stack of blocks. Blocks are cut
where the fewest values cross.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.reach import from_inputs


@dataclass(frozen=True)
class Block:
    """A section of a graph.

    Attributes:
        nodes: its operators, in order.
        inputs: values from outside, in the order of their first use.
        outputs: values used outside.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Block:
        """The block of these operators."""
        inside = set(nodes)
        inputs = dict.fromkeys(operand for node in nodes for operand in node.all_input_nodes if operand not in inside)
        outputs = [node for node in nodes if any(user not in inside for user in node.users)]
        return cls(tuple(nodes), tuple(inputs), tuple(outputs))

    def alike(self, other: Block) -> bool:
        """Whether both compute the same function of their inputs, with the same outputs."""
        if len(self.nodes) != len(other.nodes) or len(self.inputs) != len(other.inputs):
            return False
        pairs = dict(zip((*self.inputs, *self.nodes), (*other.inputs, *other.nodes), strict=True))
        same = all(
            _label(a) == _label(b) and [pairs[n] for n in a.all_input_nodes] == b.all_input_nodes
            for a, b in zip(self.nodes, other.nodes, strict=True)
        )
        fits = all(_size(a) == _size(b) or not (_size(a) and _size(b)) for a, b in pairs.items())
        return same and fits and [pairs[n] for n in self.outputs] == list(other.outputs)


def find_blocks(graph: fx.Graph, least: int = 8, constants: bool = False) -> list[list[Block]]:
    """Stacks of repeated blocks, in graph order.

    Args:
        graph: a graph with ``meta["val"]``.
        least: smallest number of operators of a block.
        constants: include operators that depend on no input (views of weights).
    """
    sequence = [n for n in graph.nodes if n.op.startswith("call_")] if constants else _sequence(graph)
    stacks: list[list[Block]] = []
    pending = [(0, len(sequence))]
    labels = np.array([hash(_label(n)) for n in sequence], dtype=np.int64)
    while pending:
        low, high = pending.pop()
        repeat = _longest_repeat(labels[low:high], least)
        if repeat is None:
            continue
        start, period, length = low + repeat[0], repeat[1], repeat[2]
        start, count = _cheapest_cut(sequence, start, period, length)
        stacks.append([Block.of(sequence[start + i * period : start + (i + 1) * period]) for i in range(count)])
        pending += [(low, start), (start + count * period, high)]
    return sorted(stacks, key=lambda stack: sequence.index(stack[0].nodes[0]))


def _sequence(graph: fx.Graph) -> list[Node]:
    """The operators whose values depend on an input."""
    reached = from_inputs(graph)
    return [node for node in graph.nodes if node.op.startswith("call_") and node in reached]


def _label(node: Node) -> tuple[str, str, str]:
    arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: "%")
    return (str(node.target), repr(arguments), _size(node))


def _size(node: Node) -> str:
    value = node.meta.get("val")
    return f"{value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""


def _longest_repeat(labels: np.ndarray, least: int) -> tuple[int, int, int] | None:
    """(start, period, length) of the longest periodic section; a longer period has to cover one more block at least."""
    best: tuple[int, int, int] | None = None
    for period in range(least, len(labels) // 2 + 1):
        if best is not None and len(labels) < best[2]:
            break
        equal = np.concatenate([[0], labels[:-period] == labels[period:], [0]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(equal))
        if not len(edges):
            continue
        starts, ends = edges[::2], edges[1::2]
        at = int((ends - starts).argmax())
        run = int(ends[at] - starts[at])
        if run >= period and (best is None or run + period > best[2] + best[1]):
            best = (int(starts[at]), period, run + period)
    return best


def _cheapest_cut(sequence: list[Node], start: int, period: int, length: int) -> tuple[int, int]:
    """Start of the first block, and the number of blocks."""
    position = {node: i for i, node in enumerate(sequence)}

    def crossing(cut: int) -> int:
        """Number of values of the block before ``cut`` that are used behind it."""
        before = sequence[max(cut - period, 0) : cut]
        return sum(any(position.get(user, len(sequence)) >= cut for user in node.users) for node in before)

    whole = length // period
    phases = [s for s in range(start, start + period) if (length - (s - start)) // period >= max(whole - 1, 2)]
    best = min(phases or [start], key=lambda s: (crossing(s + period), -((length - (s - start)) // period), s))
    return best, (length - (best - start)) // period


def folded(
    graph_module: fx.GraphModule, blocks: Sequence[Block], wrap: Callable[[torch.nn.Module], torch.nn.Module]
) -> fx.GraphModule:
    """The same graph with every block as a call of one module, ``wrap(body)``. Equal blocks share one module."""
    graph, copies = copy_graph(graph_module.graph)
    root = fx.GraphModule(graph_module, graph)
    bodies: list[tuple[Block, str]] = []
    for block in blocks:
        name = next((name for other, name in bodies if block.alike(other)), None)
        if name is None:
            name = f"block_{len(bodies)}"
            bodies.append((block, name))
            root.add_submodule(name, wrap(_body(block)))
        old = [copies[n] for n in block.nodes]
        with graph.inserting_after(old[-1]):
            call = graph.call_module(name, tuple(copies[n] for n in block.inputs))
        for index, node in reversed(list(enumerate(block.outputs))):
            with graph.inserting_after(call):
                item = graph.call_function(operator.getitem, (call, index))
            item.meta = dict(node.meta)
            copies[node].replace_all_uses_with(item)
            copies[node] = item
        for node in reversed(old):
            graph.erase_node(node)
    graph.lint()
    root.recompile()
    return root


def _body(block: Block) -> fx.GraphModule:
    graph = fx.Graph()
    env = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(block.inputs)}
    for node, copy in env.items():
        copy.meta = dict(node.meta)
    for node in block.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[n] for n in block.outputs))
    return fx.GraphModule(torch.nn.Module(), graph, class_name="Block")
