"""The result of stage 1: a captured model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture.agreement import TOLERANCE, disagreement
from lrp_fx.capture.conventions import preserved
from lrp_fx.capture.guards import Shapes
from lrp_fx.capture.signature import Call
from lrp_fx.capture.size_one import unproven


@dataclass(frozen=True)
class Decisions:
    """The tensor values and data-dependent sizes that Python read while a run was recorded.

    Attributes:
        graph_module: flat input leaves -> the tensors that were read.
        values: their values, or their sizes, in the recorded run.
    """

    graph_module: fx.GraphModule
    values: tuple[Tensor | torch.Size, ...]

    @classmethod
    def of(cls, graph_module: fx.GraphModule, leaves: Sequence[Any], shaped: Sequence[bool]) -> Decisions:
        """The decisions for given inputs; of tensors that are ``shaped`` only the size counts."""
        tensors = _run(graph_module, leaves)
        return cls(graph_module, tuple(t.shape if s else t for t, s in zip(tensors, shaped, strict=True)))

    def hold_for(self, leaves: Sequence[Any]) -> bool:
        """Whether other inputs of the same sizes lead to the same decisions."""
        try:
            tensors = _run(self.graph_module, leaves)
        except (RuntimeError, IndexError):  # an earlier decision differs, so shapes do not fit
            return False
        return all(
            t.shape == value if isinstance(value, torch.Size) else torch.equal(t, value)
            for t, value in zip(tensors, self.values, strict=True)
        )


def _run(graph_module: fx.GraphModule, leaves: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad():
        return list(graph_module(*leaves))


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Attributes:
        graph_module: the graph, with the model's own call signature and output type (pytree code generation).
        names: user-facing name of each placeholder, in order (constants included).
        out_spec: pytree structure of the output.
        shapes: the guards on sizes.
        seconds: duration of the capture.
        route: "export", or "trace" for a recorded run.
        decisions: the decisions that another call must share; None for an exported model.
        refusal: why export failed, if it did.
        key: key of its cache entry on disk, if it has one (``lrp_fx.cache.store``).
        over_time: whether it has loops over time, which are compared with the model at every length.
        others: captures for calls of other sizes that export produced as well, each with such a call.
        written: names of what the model wrote in the runs of its capture (``lrp_fx.capture.run_effects``).
    """

    graph_module: fx.GraphModule
    names: tuple[str, ...]
    out_spec: pytree.TreeSpec
    shapes: Shapes
    seconds: float
    route: str = "export"
    decisions: Decisions | None = None
    refusal: str = field(default="", repr=False)
    key: str | None = field(default=None, repr=False)
    over_time: bool = False
    others: tuple[tuple[Captured, Call], ...] = field(default=(), repr=False, compare=False)
    written: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    _shown: dict[tuple[Any, ...], str | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _agreed: dict[tuple[Any, ...], bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def placeholders(self) -> list[Node]:
        """Placeholder nodes, in order."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]

    @property
    def in_spec(self) -> pytree.TreeSpec:
        """Pytree structure of ``(args, kwargs)``."""
        codegen: Any = self.graph_module.graph._codegen
        return codegen.pytree_info.in_spec  # type: ignore[no-any-return]

    def serves(self, leaves: Sequence[Any]) -> bool:
        """Whether this capture serves these input leaves: the model would run this graph on them."""
        return self.why_not(leaves) is None

    def why_not(self, leaves: Sequence[Any]) -> str | None:
        """Why this capture does not serve these input leaves, in a line; None if it does."""
        if (reason := self.refuses_sizes(leaves)) is not None:
            return reason
        return (
            None
            if self.decides(leaves)
            else "values that the model reads lead to other decisions than in the recorded run"
        )

    def refuses_sizes(self, leaves: Sequence[Any]) -> str | None:
        """Why the model may not run this graph on inputs of these sizes, in a line; None if it does."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if (reason := self.shapes.mismatch(tensors)) is not None:
            return reason
        unsure = self.shapes.unsure(tensors)
        if unsure and unsure not in self._shown:
            self._shown[unsure] = unproven(self.graph_module, leaves, self.shapes.bound(tensors))
        return self._shown[unsure] if unsure else None

    def agrees(self, model: Callable[[], torch.nn.Module], leaves: Sequence[Any]) -> bool:
        """Whether the loops over time, if there are any, agree with the model at these sizes.

        Args:
            model: makes a copy of the model's modules, which runs once for all calls of these sizes.
            leaves: flat inputs.
        """
        if not self.over_time:
            return True
        sizes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))
        if sizes not in self._agreed:
            args, kwargs = pytree.tree_unflatten(list(leaves), self.in_spec)
            with preserved(modules := model()):
                self._agreed[sizes] = disagreement(modules, self.graph_module, args, kwargs) <= TOLERANCE
        return self._agreed[sizes]

    def decides(self, leaves: Sequence[Any]) -> bool:
        """Whether inputs of a size that it serves lead to the recorded decisions; True for an exported model."""
        return self.decisions is None or self.decisions.hold_for(leaves)
