"""From tap points to inputs: relevance of sources, summed by input name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis import Facts, Source
from lrp_fx.capture import Captured
from lrp_fx.errors import InputError
from lrp_fx.explain import tokens
from lrp_fx.graph.values import Values


@dataclass(frozen=True)
class Part:
    """Relevance of one source that belongs to one input, in the shape of that input."""

    source: Source
    input: Node
    relevance: Tensor


@dataclass(frozen=True)
class Inputs:
    """Maps relevance of the sources of a capture to its inputs.

    Attributes:
        captured: the capture.
        facts: facts of its graph.
    """

    captured: Captured
    facts: Facts

    def check(self) -> None:
        """Check that there is a source.

        Raises:
            InputError: if no input can carry relevance.
        """
        if not self.facts.sources:
            raise InputError("no input can carry relevance: there is no floating input and no embedding of token ids")

    def name(self, placeholder: Node) -> str:
        """Name of an input in a call."""
        return self.captured.names[self.captured.placeholders.index(placeholder)]

    def values(self, leaves: Sequence[Any]) -> Values:
        """Values of captured nodes on flat inputs."""
        return Values.of(self.captured.graph_module, dict(zip(self.captured.placeholders, leaves, strict=True)))

    @torch.inference_mode(False)
    def parts(self, sources: Sequence[Source], relevance: Sequence[Tensor], values: Values) -> list[Part]:
        """Relevance of each source in the shape of its inputs; relevance of embedding rows goes to their ids.

        Args:
            sources: the sources, in order; those beyond ``relevance`` are left out.
            relevance: relevance of each source, elementwise.
            values: values of the nodes between ids and rows.
        """
        listed = []
        for source, value in zip(sources, relevance, strict=False):
            pairs = tokens.to_inputs(source, value, values, self.facts) if source.picks else [(source.input, value)]
            listed += [Part(source, owner, part) for owner, part in pairs]
        return listed

    def summed(self, parts: Iterable[Part]) -> dict[str, Tensor]:
        """Input name -> sum of its relevance over sources."""
        total: dict[str, Tensor] = {}
        for part in parts:
            name = self.name(part.input)
            total[name] = total[name] + part.relevance if name in total else part.relevance
        return total

    def per_input(self, sources: Sequence[Source], relevance: Sequence[Tensor], values: Values) -> dict[str, Tensor]:
        """Input name -> relevance, as in ``Attribution.relevance``."""
        return self.summed(self.parts(sources, relevance, values))

    def by_source(self, sources: Sequence[Source], relevance: Sequence[Tensor]) -> dict[str, Tensor]:
        """Source name -> relevance, as in ``Attribution.sources``; a repeated name gets its input's name appended."""
        named: dict[str, Tensor] = {}
        for source, value in zip(sources, relevance, strict=True):
            direct = source.input.op == "placeholder"
            name = self.name(source.input) if direct and source.indices is None else source.name
            named[f"{name} ({self.name(source.input)})" if direct and name in named else name] = value
        return named


def shares(parts: Iterable[Part]) -> dict[Node, float]:
    """Source node -> sum of relevance that belongs to inputs, for sources whose ids the model computes.

    The rest of their relevance belongs to rows that the model looks up by itself (padding to a window, a start token).
    """
    sums: dict[Node, float] = {}
    for part in parts:
        computed = any(indices is not owner for owner, indices in part.source.picks)
        if computed and not part.relevance.is_meta:
            node = part.source.node
            sums[node] = sums.get(node, 0.0) + float(part.relevance.double().sum())
    return sums
