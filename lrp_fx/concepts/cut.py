"""One forward pass through a rewritten graph that is cut at its inputs and at named latents.

Behind a cut all operators read a leaf, so autograd from any later tensor stops there: the leaf receives relevance that
came directly, not through another cut. Each piece of the graph can be swept on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lrp_fx.converted import RuleSource
from lrp_fx.explain import Sweeper, Target, usable
from lrp_fx.explain.sweep import check_reached, cotangents
from lrp_fx.explain.target import beside, select
from lrp_fx.module import ExplainableModule
from lrp_fx.rules.functions import relevance_of, source
from lrp_fx.rules.ruleset import RuleSet


@dataclass(frozen=True)
class Cut:
    """One cut of the graph.

    Attributes:
        name: name of the input, or path of the latent.
        kind: "input" or "latent".
        node: the captured node.
        before: the computed tensor.
        after: the leaf that all operators behind the cut read; ``before`` itself where no relevance passes.
    """

    name: str
    kind: str
    node: Node
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)

    def relevance(self, cotangent: Tensor | None, feeds_zeros: bool = False) -> Tensor:
        """Value times cotangent (:func:`lrp_fx.rules.functions.relevance_of`)."""
        return relevance_of(self.after.detach(), cotangent, feeds_zeros and self.kind == "input")


@dataclass(frozen=True)
class CutRun:
    """A forward pass with its cuts, in topological order.

    Attributes:
        sweeper: the tapped graph.
        leaves: its flat inputs.
        cuts: inputs and latents.
        output: the model's output.
        chosen: the (B,) explained values.
    """

    sweeper: Sweeper
    leaves: tuple[Any, ...] = field(repr=False)
    cuts: tuple[Cut, ...]
    output: Any = field(repr=False)
    chosen: Tensor = field(repr=False)

    @property
    def feeds_zeros(self) -> bool:
        """Whether zeros of inputs can have relevance."""
        return self.sweeper.rewritten.plan.feeds_zeros

    def latent(self, name: str) -> Cut:
        """The cut at a latent."""
        return next(cut for cut in self.cuts if cut.kind == "latent" and cut.name == name)

    def send(self, value: Tensor, cotangent: Tensor, to: Sequence[Cut]) -> list[Tensor | None]:
        """Cotangents at the cuts ``to`` from ``cotangent`` at ``value``; None where there is none."""
        return cotangents(value, [cut.after for cut in to], cotangent, again=True)

    def to_inputs(self, value: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """Relevance of every input, as in ``Attribution.relevance``, from ``cotangent`` at ``value``.

        Relevance through other cuts does not count.
        """
        inputs = [cut for cut in self.cuts if cut.kind == "input"]
        sent = zip(inputs, self.send(value, cotangent, inputs), strict=True)
        reached = {cut.node: cut.relevance(g, self.feeds_zeros) for cut, g in sent}
        arrived = self.sweeper.inputs
        sources = arrived.facts.sources
        return arrived.per_input(sources, [reached[s.node] for s in sources], arrived.values(self.leaves))


class _Cutting(fx.Interpreter):
    def __init__(self, sweeper: Sweeper) -> None:
        super().__init__(sweeper.rewritten.graph_module)
        rewritten = sweeper.rewritten
        self.cuts: list[Cut] = []
        self.places: dict[Node, list[tuple[str, str, Node]]] = {}
        for name, node in _source_names(sweeper).items():
            self.places.setdefault(rewritten.copies[node], []).append((name, "input", node))
        innermost = sorted(sweeper.latents.items(), key=lambda item: -item[0].count("."))
        for name, node in innermost:  # modules that return the same tensor have cuts one after the other
            self.places.setdefault(rewritten.results[node], []).append((name, "latent", node))

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        for name, kind, node in self.places.get(n, ()):
            before = result
            if kind == "input" or before.requires_grad:
                result = source(before)
            self.cuts.append(Cut(name, kind, node, before, result))
        return result


def _source_names(sweeper: Sweeper) -> dict[str, Node]:
    """A unique name for every source: the input's name, with the table's name if an input has several sources."""
    sweeper.inputs.check()
    sources = sweeper.inputs.facts.sources
    inputs = [sweeper.inputs.name(s.input) for s in sources]
    named: dict[str, Node] = {}
    for name, item in zip(inputs, sources, strict=True):
        plain = inputs.count(name) == 1 and name not in sweeper.latents
        unique = name if plain else f"{name} ({item.name})"
        named[unique if unique not in named else f"{unique} at {item.node.name}"] = item.node
    return named


def cut_forward(
    xmodel: ExplainableModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    at: Iterable[str],
    target: Target = None,
    rules: RuleSource | None = None,
) -> CutRun:
    """Run a converted model once, cut at its inputs and at the latents ``at``.

    Raises:
        LatentError: for a name that matches nothing in the graph.
        TargetError: when the target does not depend on any input.
    """
    ruleset = xmodel.ruleset if rules is None else RuleSet.load(rules)
    specialization, call = xmodel.specialization(args, dict(kwargs))
    sweeper = specialization.sweeper(ruleset, tuple(dict.fromkeys(at)))
    inputs = beside(call.tensors)
    with specialization.named_failures(call), torch.inference_mode(False), torch.enable_grad():
        leaves = usable(call.leaves)
        cutting = _Cutting(sweeper)
        flat = cutting.run(*leaves, enable_io_processing=False)
        output = sweeper.output(flat)
        chosen = select(output, target, inputs, sweeper.reading)
    check_reached(chosen)
    return CutRun(sweeper, leaves, tuple(cutting.cuts), output, chosen)
