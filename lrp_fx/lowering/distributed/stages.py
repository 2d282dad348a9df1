"""A graph in stages: stretches between repeated blocks, each with all that it reads and hands on.

A stage hands on to the next one only, so a value that is read further on travels through every stage in between. What
follows from constants and sizes alone (rotary tables, views of weights) does not travel: each stage that reads it
computes it. Model inputs are at hand everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.errors import InputError
from lrp_fx.explain import Sweeper
from lrp_fx.lowering.blocks.find import find_blocks
from lrp_fx.rules.functions import source

aten = torch.ops.aten


@dataclass(frozen=True)
class Stage:
    """One stretch of a tapped graph.

    Attributes:
        graph_module: (values from the stage before, model inputs) -> (values for the next one, sources, latents,
            output leaves); the leaves only in the last stage.
        arrives: nodes of the tapped graph that come from the stage before, in order.
        departs: nodes of the tapped graph that go to the next stage, in order.
        sources: which of the tapped graph's sources are collected here.
        latents: which of its latents are.
    """

    graph_module: fx.GraphModule
    arrives: tuple[Node, ...]
    departs: tuple[Node, ...]
    sources: tuple[int, ...]
    latents: tuple[int, ...]


def split(sweeper: Sweeper, count: int) -> list[Stage]:
    """The tapped graph in ``count`` stages that meet between repeated blocks, of about equally many weights each.

    Raises:
        InputError: when there are fewer places to cut than wanted.
    """
    return _Splitter(sweeper.tapped, count).stages()


class _Splitter:
    """Assigns the nodes of a tapped graph to stages.

    Attributes:
        local: nodes that follow from constants and sizes alone: every stage computes its own.
        stage: the others -> index of their stage.
    """

    def __init__(self, tapped: fx.GraphModule, count: int) -> None:
        self.tapped, self.count = tapped, count
        self.nodes = list(tapped.graph.nodes)
        self.results, self.taps, self.held = self.nodes[-1].args[0]
        self.local: set[Node] = set()
        for node in self.nodes:
            if node.op == "get_attr" or (node.op == "call_function" and self._follows(node)):
                self.local.add(node)
        self.stage = self._assigned(_starts(tapped.graph))

    def _follows(self, node: Node) -> bool:
        if node.target is source:  # relevance is collected here, once
            return False
        sized = node.target is aten.sym_size.int
        return all(n in self.local or (sized and n.op == "placeholder") for n in node.all_input_nodes)

    def _assigned(self, starts: Sequence[Node]) -> dict[Node, int]:
        share = self._shares()
        if len(starts) < self.count - 1:
            raise InputError(
                f"repeated blocks begin at {len(starts)} places of the model: it can be cut into {len(starts) + 1} "
                f"stages at most, not {self.count}. Start fewer processes."
            )
        cuts: list[Node] = []
        for index in range(1, self.count):
            later = starts[starts.index(cuts[-1]) + 1 if cuts else 0 : len(starts) - (self.count - 1 - index)]
            cuts.append(min(later, key=lambda node: abs(share[node] - index / self.count)))
        stage: dict[Node, int] = {}
        current = 0
        for node in self.nodes:
            current += node in cuts
            if node.op == "call_function" and node not in self.local:
                whole = node.all_input_nodes[0] if node.target is operator.getitem else node
                stage[node] = stage.get(whole, current)  # a piece stays with what it is taken from
        return stage

    def _shares(self) -> dict[Node, float]:
        """Node -> the part of all weights that is read before it."""
        seen: set[str] = set()
        total, before = 0, {}
        for node in self.nodes:
            before[node] = total
            if node.op != "call_function" or node in self.local:
                continue
            for name in self._constants(node) - seen:
                value = operator.attrgetter(name)(self.tapped)
                total += value.numel() if isinstance(value, Tensor) else 0
                seen.add(name)
        return {node: amount / max(total, 1) for node, amount in before.items()}

    def _constants(self, node: Node) -> set[str]:
        paths: set[str] = set()
        pending = list(node.all_input_nodes)
        while pending:
            operand = pending.pop()
            if operand.op == "get_attr":
                paths.add(str(operand.target))
            elif operand in self.local:
                pending += operand.all_input_nodes
        return paths

    def stages(self) -> list[Stage]:
        """Every stage."""
        last = self.count - 1
        needed = [self._needed(index) for index in range(self.count)]
        crossing: list[tuple[Node, ...]] = [()]
        for index in range(last):
            behind = set().union(*needed[index + 1 :])
            crossing.append(tuple(n for n in self.nodes if n in behind and self._sent(n) and self.stage[n] <= index))
        crossing.append(())
        return [self._stage(i, needed[i], crossing[i], crossing[i + 1]) for i in range(self.count)]

    def _sent(self, node: Node) -> bool:
        """Whether a value travels to the stages that read it."""
        return node in self.stage and isinstance(node.meta.get("val"), Tensor)

    def _home(self, node: Node) -> int:
        return self.stage.get(node, 0)

    def _roots(self, index: int) -> list[Node]:
        """What a stage computes for its own sake."""
        roots = [n for n in (*self.taps, *self.held) if self._home(n) == index]
        return roots + (_nodes(self.results) if index == self.count - 1 else [])

    def _needed(self, index: int) -> set[Node]:
        """Nodes that a stage reads or computes: its own with all that they read of stages before."""
        computed = [node for node, home in self.stage.items() if home == index]
        needed: set[Node] = set()
        pending = computed + self._roots(index)
        while pending:
            node = pending.pop()
            if node in needed:
                continue
            needed.add(node)
            if self._computed(node, index):
                pending += node.all_input_nodes
        return needed

    def _computed(self, node: Node, index: int) -> bool:
        """Whether a stage computes a node itself: its own, and of the others' what is no tensor."""
        if node.op == "placeholder":
            return False
        return self.stage.get(node, index) == index or not self._sent(node)

    def _stage(self, index: int, needed: set[Node], arrives: tuple[Node, ...], departs: tuple[Node, ...]) -> Stage:
        graph = fx.Graph()
        env: dict[Node, Node] = {node: graph.placeholder(f"from_{node.name}") for node in arrives}
        for node in self.nodes:
            if node.op == "placeholder":
                env[node] = graph.node_copy(node)
        for node in self.nodes:
            if node in needed and node not in env and node.op != "output" and self._computed(node, index):
                env[node] = graph.node_copy(node, env.__getitem__)
        sent = tuple(graph.call_function(aten.contiguous.default, (env[n],)) for n in departs)
        taps, held = (tuple(i for i, n in enumerate(of) if self._home(n) == index) for of in (self.taps, self.held))
        results = fx.map_arg(self.results, env.__getitem__) if index == self.count - 1 else ()
        graph.output((sent, [env[self.taps[i]] for i in taps], [env[self.held[i]] for i in held], results))
        graph.eliminate_dead_code()
        graph.lint()
        return Stage(fx.GraphModule(self.tapped, graph, class_name="Stage"), arrives, departs, taps, held)


def _starts(graph: fx.Graph) -> list[Node]:
    """Where repeated blocks begin, in graph order."""
    return [block.nodes[0] for stack in find_blocks(graph) for block in stack]


def _nodes(values: Any) -> list[Node]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Node)]
