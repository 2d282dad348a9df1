"""The captured graph as a function of its sources: embedding rows and pixels become differentiable inputs.

Methods with gradients at the embeddings (saliency, integrated gradients) usually need the name of a layer to hook. A
captured graph has the sources of its inputs, so they work on any model.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from lrp_fx.analysis import Source
from lrp_fx.capture import Captured
from lrp_fx.errors import InputError
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.explain.target import beside, select
from lrp_fx.explain.tokens import to_inputs
from lrp_fx.graph.copies import copy_graph
from lrp_fx.specialization import Specialization


@dataclass(frozen=True)
class Embedded:
    """A captured graph without rules, cut at the sources of one input.

    Attributes:
        specialization: the capture and its facts.
        owner: the input.
        sources: its sources.
        reader: flat inputs -> the tensors at the sources; ``copies`` maps captured nodes to its nodes.
        cut: (sources..., flat inputs...) -> flat output.
    """

    specialization: Specialization
    owner: Node
    sources: tuple[Source, ...]
    reader: fx.GraphModule
    copies: dict[Node, Node] = field(repr=False)
    cut: fx.GraphModule

    @classmethod
    def build(cls, specialization: Specialization, name: str, watched: Mapping[str, Node] | None = None) -> Embedded:
        """Cut at the sources of the input ``name``.

        Args:
            specialization: the capture to cut.
            name: name of the input.
            watched: submodule name -> captured node: ``cut`` gets a submodule with the node's value as its output,
                where forward hooks read or replace it.

        Raises:
            InputError: for an input without a source.
        """
        captured = specialization.captured
        owner = captured.placeholders[captured.names.index(name)] if name in captured.names else None
        sources = tuple(s for s in specialization.facts.sources if owner in (s.input, *(n for n, _ in s.picks)))
        if owner is None or not sources:
            raise InputError(f"input {name!r} has no gradient: it is neither floating nor has embedded token ids")
        reader, copies = _read(captured, sources)
        return cls(specialization, owner, sources, reader, copies, _cut(captured, sources, watched or {}))

    @property
    def captured(self) -> Captured:
        """The capture."""
        return self.specialization.captured

    def read(self, leaves: Sequence[Any]) -> tuple[tuple[Tensor, ...], dict[Node, Any]]:
        """The tensors at the sources, and the values of all captured nodes before them."""
        run = fx.Interpreter(self.reader, garbage_collect_values=False)
        with torch.no_grad():
            values = run.run(*leaves)
        env = {node: run.env[copy] for node, copy in self.copies.items() if copy in run.env}
        return tuple(v.detach() for v in values), env

    def explained(self, *tensors: Tensor) -> Tensor:
        """(sources..., input leaves..., target...) -> (B,) explained values, differentiable in the sources."""
        first, last = len(self.sources), len(self.sources) + len(self.captured.names)
        leaves, target = tensors[first:last], tensors[last:]
        flat = self.cut(*tensors[:last])
        output = pytree.tree_unflatten(pytree.tree_leaves(flat), self.captured.out_spec)
        inputs = beside(dict(zip(self.captured.names, leaves, strict=True)))
        return select(output, target if len(target) > 1 else target[0], inputs, self.specialization.reading)

    def at_input(self, relevance: Sequence[Tensor], env: dict[Node, Any]) -> Tensor:
        """Elementwise relevance at the sources -> relevance in the shape of the input ((B, S) for token ids)."""
        collected = []
        for item, value in zip(self.sources, relevance, strict=True):
            pairs = to_inputs(item, value, env, self.specialization.facts) if item.picks else [(item.input, value)]
            collected += [part for owner, part in pairs if owner is self.owner]
        return torch.stack(collected).sum(0)


def _read(captured: Captured, sources: Sequence[Source]) -> tuple[fx.GraphModule, dict[Node, Node]]:
    graph, copies = copy_graph(captured.graph_module.graph)
    graph._codegen = CodeGen()
    end = graph.output_node()
    end.args = (tuple(copies[s.node] for s in sources),)
    graph.eliminate_dead_code()
    return fx.GraphModule(captured.graph_module, graph, class_name="SourceReader"), copies


def _cut(captured: Captured, sources: Sequence[Source], watched: Mapping[str, Node]) -> fx.GraphModule:
    graph, copies = copy_graph(captured.graph_module.graph)
    graph._codegen = CodeGen()
    first = next(iter(graph.nodes))
    for position, item in enumerate(sources):
        with graph.inserting_before(first):
            entry = graph.placeholder(f"source_{position}")
        entry.meta = dict(copies[item.node].meta)
        copies[item.node].replace_all_uses_with(entry)
    module = fx.GraphModule(captured.graph_module, graph, class_name="EmbeddedGraph")
    copied = dict(zip(graph.nodes, module.graph.nodes, strict=True))
    for name, node in watched.items():
        module.add_submodule(name, torch.nn.Identity())
        place = copied[copies[node]]
        with module.graph.inserting_after(place):
            seen = module.graph.call_module(name, (place,))
        place.replace_all_uses_with(seen, delete_user_cb=functools.partial(operator.is_not, seen))
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


@dataclass(frozen=True)
class Point:
    """Some samples at the sources of a task's input: the arguments of a gradient method.

    Attributes:
        embedded: the graph that serves them.
        values: the tensors at its sources.
        rest: further arguments of ``embedded.explained``: input leaves, then targets.
        env: values of the captured nodes before the sources.
    """

    embedded: Embedded
    values: tuple[Tensor, ...]
    rest: tuple[Any, ...]
    env: dict[Node, Any]


#: specialization -> (the specialization to cut, the nodes to watch); None if the model has no such nodes
View = Callable[[Specialization], "tuple[Specialization, Mapping[str, Node]] | None"]


def whole(specialization: Specialization) -> tuple[Specialization, Mapping[str, Node]]:
    """The view of a method without watched nodes."""
    return specialization, {}


@dataclass(frozen=True)
class Embedder:
    """Embeds batches of one task; each capture is cut once."""

    task: Task
    view: View = whole
    _cuts: dict[int, Embedded] = field(default_factory=dict, repr=False)

    def applies(self) -> bool:
        """Whether the model has the nodes of the view."""
        specialization, _ = self.task.converted.specialization((), dict(self.task.batch(slice(0, 2)).inputs))
        return self.view(specialization) is not None

    def point(self, batch: Batch) -> Point:
        """The samples of ``batch`` at the sources.

        Raises:
            InputError: if the capture for this batch lacks the nodes of the view.
        """
        specialization, call = self.task.converted.specialization((), dict(batch.inputs))
        key = id(specialization)  # alive as long as the task's converted model is
        if key not in self._cuts:
            seen = self.view(specialization)
            if seen is None:
                raise InputError(f"task {self.task.name!r}: a capture of the model lacks the nodes of this method")
            self._cuts[key] = Embedded.build(seen[0], self.task.features.input, seen[1])
        embedded = self._cuts[key]
        values, env = embedded.read(call.leaves)
        targets = batch.target if isinstance(batch.target, tuple) else (batch.target,)
        return Point(embedded, values, (*call.leaves, *targets), env)

    def emptied(self, batch: Batch) -> tuple[Tensor, ...]:
        """The reference point: the tensors at the sources with every eligible feature of ``batch`` removed."""
        inputs = self.task.features.perturb(batch.inputs, batch.eligible)
        return self.point(Batch(inputs, batch.target, batch.eligible, None)).values

    def features(self, point: Point, relevance: Sequence[Tensor]) -> Tensor:
        """Relevance at the sources -> (B, F)."""
        return self.task.features.pool(point.embedded.at_input(relevance, point.env)).detach()
