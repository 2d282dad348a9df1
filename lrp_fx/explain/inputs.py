"""From tap points to inputs: relevance of sources, added up under the names of the inputs that they belong to."""

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
    """The inputs of a capture, and the sources that stand for them.

    Attributes:
        captured: the capture.
        facts: of its graph.
    """

    captured: Captured
    facts: Facts

    def check(self) -> None:
        """Look whether there is a source at all.

        Raises:
            InputError: where no input can carry relevance.
        """
        if not self.facts.sources:
            raise InputError(
                "no input can carry relevance: there is no floating input and no token id that picks a table row"
            )

    def name(self, placeholder: Node) -> str:
        """What the call names an input."""
        return self.captured.names[self.captured.placeholders.index(placeholder)]

    def values(self, leaves: Sequence[Any]) -> Values:
        """Values of captured nodes on flat inputs."""
        return Values.of(self.captured.graph_module, dict(zip(self.captured.placeholders, leaves, strict=True)))

    @torch.inference_mode(False)
    def parts(self, sources: Sequence[Source], relevance: Sequence[Tensor], values: Values) -> list[Part]:
        """Relevance of each source in the shapes of its inputs: that of rows goes to the ids which picked them.

        Args:
            sources: some sources, the inputs' own first; what has no relevance (of further ones) is left out.
            relevance: of each, elementwise.
            values: of the nodes between ids and rows.
        """
        listed = []
        for source, value in zip(sources, relevance, strict=False):
            pairs = tokens.to_inputs(source, value, values, self.facts) if source.picks else [(source.input, value)]
            listed += [Part(source, owner, part) for owner, part in pairs]
        return listed

    def summed(self, parts: Iterable[Part]) -> dict[str, Tensor]:
        """Input name -> the sum of its parts."""
        total: dict[str, Tensor] = {}
        for part in parts:
            name = self.name(part.input)
            total[name] = total[name] + part.relevance if name in total else part.relevance
        return total

    def per_input(self, sources: Sequence[Source], relevance: Sequence[Tensor], values: Values) -> dict[str, Tensor]:
        """Input name -> relevance, as in ``Attribution.relevance``, from that of :meth:`parts`."""
        return self.summed(self.parts(sources, relevance, values))

    def by_source(self, sources: Sequence[Source], relevance: Sequence[Tensor]) -> dict[str, Tensor]:
        """Source name -> relevance, as in ``Attribution.sources``; of two with one name, the second says its input."""
        named: dict[str, Tensor] = {}
        for source, value in zip(sources, relevance, strict=True):
            direct = source.input.op == "placeholder"
            name = self.name(source.input) if direct and source.indices is None else source.name
            named[f"{name} ({self.name(source.input)})" if direct and name in named else name] = value
        return named


def shares(parts: Iterable[Part]) -> dict[Node, float]:
    """Source node -> the sum of relevance that belongs to inputs, of sources where that is not all of it.

    The rest belongs to rows that the model picks by itself (padding to a window, a start token).
    """
    sums: dict[Node, float] = {}
    for part in parts:
        computed = any(indices is not owner for owner, indices in part.source.picks)
        if computed and not part.relevance.is_meta:
            node = part.source.node
            sums[node] = sums.get(node, 0.0) + float(part.relevance.double().sum())
    return sums
