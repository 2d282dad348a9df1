"""Account of one node during an accounting sweep: its arguments, the relevance that arrives and that it passes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.graph.operands import Slot
from lrp_fx.rules.functions import nonzero


class LayerRun(NamedTuple):
    """One evaluated run of a layer (``rules.layer_rules``).

    Attributes:
        node: the run, a node of the rewritten graph.
        args: its evaluated arguments.
        kwargs: its evaluated keyword arguments.
        share: index of the relevance share that it passes on.
        sign: 1, or -1 for a run whose output is subtracted.
        input: slot of the layer's input.
    """

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    share: int
    sign: int
    input: Slot


@dataclass
class Account:
    """Record of one captured node during a sweep.

    Attributes:
        node: the captured node.
        arguments: evaluated (args, kwargs) of its operator.
        post: evaluated args of the identity rule, or of the sign rule, after it, if any.
        shares: evaluated args of the rules that divide relevance among runs of a layer.
        runs: the runs of a layer.
        outputs: its floating output tensors, each with its cotangent.
        positions: indices of these among the operator's outputs.
        passed: relevance that its rule passed to its operands.
        breaks: whether its rule passed on a cotangent that is not finite.
        feeds_zeros: whether zeros can have relevance (rules that use weights alone).
    """

    node: Node
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    post: tuple[Any, ...] = ()
    shares: list[tuple[Any, ...]] = field(default_factory=list)
    runs: list[LayerRun] = field(default_factory=list)
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    passed: float = 0.0
    breaks: bool = False
    feeds_zeros: bool = False

    def watch(self, output: Tensor, position: int) -> None:
        """Note an output that may get a cotangent."""

    def arrive(self, output: Tensor, position: int, cotangent: Tensor | None) -> None:
        """Record the total cotangent of one output; None where it has none."""
        if cotangent is not None:
            self.outputs.append((output, cotangent.detach()))
            self.positions.append(position)

    def receive(self, operand: Tensor, cotangent: Tensor | None) -> None:
        """Record the cotangent that the rule passed to one operand."""
        if cotangent is not None:
            self.passed += safe_dot(self.seen(operand.detach()), cotangent)
            self.breaks |= not finite_where_it_counts(operand, cotangent)

    def seen(self, value: Tensor) -> Tensor:
        """``value`` as it enters relevance: zeros are replaced where they can have relevance."""
        return nonzero(value) if self.feeds_zeros else value

    @property
    def arrived(self) -> float:
        """Relevance that arrived: sum of output times cotangent."""
        return sum(safe_dot(self.seen(y), g) for y, g in self.outputs)

    @property
    def magnitude(self) -> float:
        """Sum of absolute relevance that arrived: the scale for defects."""
        return sum(float(torch.nan_to_num(y * g).abs().sum()) for y, g in self.outputs)

    @property
    def finite(self) -> bool:
        """Whether every cotangent that arrived is finite."""
        return all(finite_where_it_counts(y, g) for y, g in self.outputs)


def finite_where_it_counts(value: Tensor, cotangent: Tensor) -> bool:
    """Whether a cotangent is finite, except where the value is infinite (a mask): there it goes no further."""
    return bool((cotangent.isfinite() | value.detach().isinf()).all())


def safe_dot(value: Tensor, cotangent: Tensor) -> float:
    """Sum of value * cotangent in double precision; a mask of -inf never contributes.

    Its cotangent is 0, or NaN where a whole row is masked and the model replaces the result.
    """
    if value.is_complex():  # autograd's inner product of complex tensors is that of their real views
        return safe_dot(torch.view_as_real(value.resolve_conj()), torch.view_as_real(cotangent.resolve_conj()))
    product = value.double() * cotangent.double()
    return float(torch.where((cotangent == 0) | (value.isinf() & cotangent.isnan()), 0.0, product).sum())
