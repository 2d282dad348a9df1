"""Comparison of a model's gradient with the gradient of its captured operators.

A ``torch.autograd.Function`` can define any backward: a straight-through estimator, a reversed gradient. Capture sees
only the operators of its forward pass, to which rules apply. The result under the gradient rules should be the model's
input times gradient; a note tells if it is not.
"""

from __future__ import annotations

from typing import Any

import torch

from lrp_fx.capture import Call, opened
from lrp_fx.explain import Sweeper, Target, usable
from lrp_fx.graph.operands import dtype
from lrp_fx.results.notes import Note
from lrp_fx.verify.gradients import of_graph, of_model

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}  #: sum of absolute differences relative to that of the map


def custom_backward_note(
    model: torch.nn.Module,
    sweeper: Sweeper,
    call: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Target,
) -> Note | None:
    """A note if autograd's input times gradient differs from that of the captured operators, at a floating input.

    Costs a forward and a backward pass of the model, and of its captured graph. None also if either cannot be
    differentiated, in half precision, and without a floating input.

    Args:
        model: the model.
        sweeper: its graph under the gradient rules.
        call: the flat call.
        args: positional arguments of the same call.
        kwargs: keyword arguments of the same call.
        target: the value to differentiate.
    """
    leaves, choose = usable(call.leaves), sweeper.choose(call, target)
    nodes = dict(zip(call.names, sweeper.captured.placeholders, strict=True))
    floats = {s.node for s in sweeper.rewritten.plan.facts.sources if s.indices is None}
    inputs = {name: value for name, value in call.tensors.items() if nodes[name] in floats}
    precisions = {dtype(n) for n in sweeper.rewritten.plan.decisions} | {v.dtype for v in inputs.values()}
    if not inputs or any(v.is_meta for v in inputs.values()) or not precisions - {None} <= _TOLERANCES.keys():
        return None
    tolerance = max(_TOLERANCES[p] for p in precisions if p is not None)
    try:
        of_operators = of_graph(sweeper.captured, [nodes[n] for n in inputs], leaves, choose).sources
        args, kwargs = opened((args, kwargs))
        of_autograd = of_model(model, args, kwargs, inputs, choose)
    except Exception:  # an output of another structure, an operator without a derivative: verify() says which
        return None
    for name, expected in of_autograd.items():
        apart = float((expected.double() - of_operators[nodes[name]].double()).abs().sum())
        if apart > tolerance * max(float(expected.double().abs().sum()), 1e-300):
            return Note(
                "own backward",
                f"the model's own gradient at {name!r} is not that of its operators: an autograd.Function in it has a "
                "backward of its own (a straight-through estimator, a reversed gradient), or it writes into tensors "
                "without gradients. This relevance is that of the operators.",
            )
    return None
