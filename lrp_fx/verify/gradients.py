"""Input times gradient by plain autograd: the reference for ``rules="gradient"``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Captured
from lrp_fx.capture.containers import closed
from lrp_fx.capture.conventions import copied_inputs, preserved, traceable
from lrp_fx.explain.accounts import Sweep
from lrp_fx.explain.sweep import cotangents
from lrp_fx.rules.derivatives import differentiable
from lrp_fx.rules.functions import relevance_of, source


@dataclass(frozen=True)
class Gradients:
    """Plain gradients of a captured graph.

    Attributes:
        sources: source node -> its value times its gradient.
        cotangents: node -> gradient of its value; nodes without a gradient are left out.
    """

    sources: dict[Node, Tensor]
    cotangents: dict[Node, Tensor] = field(repr=False)


class _Watching(fx.Interpreter):
    """Runs a captured graph with its sources as leaves, and records the cotangent of every node."""

    def __init__(self, captured: Captured, sources: Sequence[Node]) -> None:
        super().__init__(captured.graph_module)
        self.sources = set(sources)
        self.leaves: dict[Node, Tensor] = {}
        self.cotangents: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Evaluate one node."""
        result = super().run_node(n)
        if n in self.sources:
            self.leaves[n] = result = source(result)
        elif n.op == "get_attr" and isinstance(result, Tensor):
            result = result.detach()
        elif isinstance(result, Tensor) and result.requires_grad:
            result.register_hook(functools.partial(self.cotangents.__setitem__, n))
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call one operator in its differentiable form, as a sweep does."""
        return super().call_function(differentiable(target), args, kwargs)


def of_graph(
    captured: Captured, sources: Sequence[Node], leaves: Sequence[Any], choose: Callable[[Any], Tensor]
) -> Gradients:
    """Gradients of the explained values at the sources, through the captured graph.

    Raises:
        RuntimeError: for an operator without a derivative.
    """
    watching = _Watching(captured, sources)
    with torch.inference_mode(False), torch.enable_grad():
        flat = pytree.tree_leaves(watching.run(*leaves, enable_io_processing=False))
        chosen = choose(pytree.tree_unflatten(flat, captured.out_spec))
        nodes, tensors = list(watching.leaves), list(watching.leaves.values())
        grads = cotangents(chosen, tensors)
    relevance = {n: relevance_of(t, g) for n, t, g in zip(nodes, tensors, grads, strict=True)}
    return Gradients(relevance, watching.cotangents)


def of_model(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    choose: Callable[[Any], Tensor],
) -> dict[str, Tensor]:
    """Value times gradient of some floating inputs, through the model.

    Args:
        model: the model; it runs in evaluation mode.
        args: its arguments, with objects opened (:func:`lrp_fx.capture.opened`).
        kwargs: its keyword arguments, opened, too.
        inputs: name -> tensor among them to differentiate.
        choose: output -> (B,) explained values.

    Raises:
        RuntimeError: if the model cannot be differentiated.
    """
    flat, spec = pytree.tree_flatten((args, dict(kwargs)))
    leaves = {name: source(value) for name, value in inputs.items()}
    names = {id(value): name for name, value in inputs.items()}
    with torch.inference_mode(False), torch.enable_grad():
        arguments = [leaves[names[id(v)]].clone() if id(v) in names else copied_inputs(v) for v in flat]
        positional, keyword = pytree.tree_unflatten(arguments, spec)
        with preserved(model), traceable(model, experts=None):
            chosen = choose(model(*closed(positional), **closed(keyword)))
        if not chosen.requires_grad:
            raise RuntimeError("its output has no gradient")
        grads = cotangents(chosen, list(leaves.values()))
    return {name: relevance_of(leaf, g) for (name, leaf), g in zip(leaves.items(), grads, strict=True)}


def first_apart(captured: Captured, sweep: Sweep, gradients: Gradients, tolerance: float) -> Node | None:
    """The first node of the backward pass where a sweep under the gradient rules differs from autograd."""

    def apart(node: Node) -> bool:
        account = sweep.accounts.get(node)
        if account is None or not account.outputs or not isinstance(node.meta.get("val"), Tensor):
            return False
        plain = gradients.cotangents.get(node)
        swept = account.outputs[0][1]
        if plain is None or plain.shape != swept.shape:
            return bool(swept.any())
        scale = float(plain.double().abs().max())
        return not float((plain.double() - swept.double()).abs().max()) <= tolerance * scale

    for node in reversed(captured.graph_module.graph.nodes):
        if apart(node):
            users = [u for u in node.users if u in sweep.accounts and not apart(u)]
            return users[-1] if users else node
    return None
