"""A graph in pipeline stages, cut between repeated blocks.

A stage sends values to the next stage only, so a value that a later stage reads passes through every stage in between.
Values that depend on constants and sizes alone (rotary tables, views of weights) are not sent: each stage that reads
them computes them. Every stage has the model inputs.
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
from lrp_fx.graph.reach import upstream
from lrp_fx.lowering.blocks.find import find_blocks
from lrp_fx.rules.functions import source

aten = torch.ops.aten


@dataclass(frozen=True)
class Stage:
    """One stage of a tapped graph.

    Attributes:
        graph_module: (values from the stage before, model inputs) -> (values for the next stage, sources, latents,
            output leaves); output leaves in the last stage only.
        arrives: nodes of the tapped graph whose values come from the stage before, in order.
        departs: nodes of the tapped graph whose values go to the next stage, in order.
        sources: indices of the tapped graph's sources in this stage.
        latents: indices of the tapped graph's latents in this stage.
    """

    graph_module: fx.GraphModule
    arrives: tuple[Node, ...]
    departs: tuple[Node, ...]
    sources: tuple[int, ...]
    latents: tuple[int, ...]


def split(sweeper: Sweeper, count: int) -> list[Stage]:
    """Split the tapped graph between repeated blocks into ``count`` stages of about equally many weights.

    Raises:
        InputError: when there are too few repeated blocks.
    """
    return _Splitter(sweeper.tapped, count).stages()


class _Splitter:
    """Assigns the nodes of a tapped graph to stages.

    Attributes:
        local: nodes that depend on constants and sizes alone: every stage computes them itself.
        stage: every other operator -> index of its stage.
    """

    def __init__(self, tapped: fx.GraphModule, count: int) -> None:
        self.tapped, self.count = tapped, count
        self.nodes = list(tapped.graph.nodes)
        self.results, self.sources, self.latents = self.nodes[-1].args[0]
        self.local: set[Node] = set()
        for node in self.nodes:
            if node.op == "get_attr" or (node.op == "call_function" and self._is_local(node)):
                self.local.add(node)
        self.stage = self._assigned(_starts(tapped.graph))

    def _is_local(self, node: Node) -> bool:
        if node.target is source:  # a tap point belongs to one stage
            return False
        sized = node.target is aten.sym_size.int
        return all(n in self.local or (sized and n.op == "placeholder") for n in node.all_input_nodes)

    def _assigned(self, starts: Sequence[Node]) -> dict[Node, int]:
        share = self._shares()
        if len(starts) < self.count - 1:
            raise InputError(
                f"the model has {len(starts)} repeated blocks and can be cut into at most {len(starts) + 1} stages, "
                f"not {self.count}. Start fewer processes."
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
                stage[node] = stage.get(whole, current)  # an item is in the stage of its tuple
        return stage

    def _shares(self) -> dict[Node, float]:
        """Node -> fraction of all weights read before it."""
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
        operands = upstream(node.all_input_nodes, lambda n: n.all_input_nodes if n in self.local else ())
        return {str(operand.target) for operand in operands if operand.op == "get_attr"}

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
        """Whether a value is sent to the stages that read it."""
        return node in self.stage and isinstance(node.meta.get("val"), Tensor)

    def _home(self, node: Node) -> int:
        return self.stage.get(node, 0)

    def _roots(self, index: int) -> list[Node]:
        """Outputs of a stage besides the values for the next one."""
        roots = [n for n in (*self.sources, *self.latents) if self._home(n) == index]
        return roots + (_nodes(self.results) if index == self.count - 1 else [])

    def _needed(self, index: int) -> set[Node]:
        """Nodes that a stage computes, and the values of earlier stages that they read."""
        computed = [node for node, home in self.stage.items() if home == index]
        starts = computed + self._roots(index)
        return set(upstream(starts, lambda n: n.all_input_nodes if self._computed(n, index) else ()))

    def _computed(self, node: Node, index: int) -> bool:
        """Whether a stage computes a node itself: one of its own, or one whose value is not sent (no tensor)."""
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
        taps = (self.sources, self.latents)
        sources, latents = (tuple(i for i, n in enumerate(nodes) if self._home(n) == index) for nodes in taps)
        results = fx.map_arg(self.results, env.__getitem__) if index == self.count - 1 else ()
        graph.output((sent, [env[self.sources[i]] for i in sources], [env[self.latents[i]] for i in latents], results))
        graph.eliminate_dead_code()
        graph.lint()
        return Stage(fx.GraphModule(self.tapped, graph, class_name="Stage"), arrives, departs, sources, latents)


def _starts(graph: fx.Graph) -> list[Node]:
    """First nodes of repeated blocks, in graph order."""
    return [block.nodes[0] for stack in find_blocks(graph) for block in stack]


def _nodes(values: Any) -> list[Node]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Node)]
