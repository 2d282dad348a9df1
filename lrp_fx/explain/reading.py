"""Reading of a captured model's output: which of its tensors are the logits, and which dimension counts classes.

The logits are ``output.logits`` if it exists, otherwise the first floating tensor with the batch size of the inputs (a
loss has none). Their class axis is found in the graph (:mod:`lrp_fx.analysis.class_axis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.analysis import Facts
from lrp_fx.analysis.class_axis import class_axis
from lrp_fx.capture import Captured
from lrp_fx.capture.containers import returned
from lrp_fx.errors import TargetError
from lrp_fx.explain.vocabulary import are_shares, token_inputs


@dataclass(frozen=True)
class Reading:
    """Where an output has its logits.

    Attributes:
        leaf: index of the logits among the output's leaves; None for the choice of :func:`find_logits`.
        axis: their class dimension; None where the graph does not tell.
        named: whether they are ``output.logits``.
        example: the logits of the example inputs, without values.
        shares: whether they are probabilities (of a softmax) instead of logits.
        tokens: names of the inputs whose token ids a sequence of logits predicts, a decoder's first.
    """

    leaf: int | None = None
    axis: int | None = None
    named: bool = False
    example: Tensor | None = None
    shares: bool = False
    tokens: tuple[str, ...] = ()

    def logits(self, output: Any) -> Tensor:
        """The logits of an output with the captured structure.

        Raises:
            TargetError: when the output has no floating tensor.
        """
        return find_logits(output) if self.leaf is None else pytree.tree_leaves(returned(output))[self.leaf]

    def kind(self, logits: Tensor) -> str:
        """Kind of the logits.

        "single" (one value per sample), "classes" (B, C), "sequence" (B, S, C), "dense" (a class axis among others:
        (B, C, H, W), (B, C, T), (B, H, W, C)), or "unknown".
        """
        rank = logits.dim()
        if rank < 3:
            return "single" if rank < 2 else "classes"
        if rank == 3 and (self.axis == 2 or (self.axis is None and self.named)):
            return "sequence"
        return "unknown" if self.axis in (None, 0) else "dense"

    def plain(self) -> dict[str, Any]:
        """As plain data: leaf, axis and name."""
        return {"leaf": self.leaf, "axis": self.axis, "named": self.named}

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> Reading:
        """Read the result of :meth:`plain`."""
        leaf, axis = (None if document[key] is None else int(document[key]) for key in ("leaf", "axis"))
        return cls(leaf, axis, bool(document["named"]))


def read_output(captured: Captured, facts: Facts) -> Reading:
    """Find the logits in the output of a capture."""
    end = captured.graph_module.graph.output_node()
    leaves = pytree.tree_leaves(end.args[0])
    inputs = [n.meta.get("val") for n in captured.placeholders]
    batches = {str(v.shape[0]) for v in inputs if isinstance(v, Tensor) and v.dim()}
    try:
        named = _named(pytree.tree_unflatten(leaves, captured.out_spec))
    except Exception:  # a class of outputs that cannot be built from nodes
        named = None
    values = [getattr(leaf, "meta", {}).get("val") for leaf in leaves]
    leaf = next((i for i, n in enumerate(leaves) if n is named), None) if named is not None else None
    if leaf is None or not isinstance(values[leaf], Tensor):
        named, leaf = None, _first(values, batches)
    if leaf is None:
        return Reading()
    example = values[leaf]
    reading = Reading(leaf, class_axis(leaves[leaf], facts), named is not None, example)
    if not isinstance(example, Tensor):
        return reading
    says = reading.kind(example) == "sequence"
    tokens = token_inputs(captured, facts, int(example.shape[-1])) if says else ()
    return replace(reading, shares=are_shares(leaves[leaf], facts), tokens=tokens)


def _named(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _first(values: list[Any], batches: set[str]) -> int | None:
    """The first floating tensor with the inputs' batch; without one, the first with a dimension, then the first."""
    floating = [(i, v) for i, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()]
    batched = [i for i, v in floating if v.dim() and str(v.shape[0]) in batches]
    shaped = [i for i, v in floating if v.dim()]
    return next(iter([*batched, *shaped, *(i for i, _ in floating)]), None)


def find_logits(output: Any) -> Tensor:
    """The logits of an output without a capture: ``output.logits``, otherwise the first floating tensor with a
    dimension, otherwise the first floating tensor.

    Raises:
        TargetError: when the output has no floating tensor.
    """
    logits = _named(output)
    if isinstance(logits, Tensor):
        return logits
    leaves = pytree.tree_leaves(output)
    leaf = _first(leaves, set())
    if leaf is None:
        raise TargetError("the output has no floating-point tensor to explain; pass target=callable(output) -> (B,)")
    return leaves[leaf]
