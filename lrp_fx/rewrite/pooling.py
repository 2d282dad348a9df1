"""Rules for selections that divide relevance among a whole window, as nodes of the graph.

An output y is the largest of the inputs x_i in its window. Besides winner-takes-all there are two rules (sums over the
window; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", treat max-pooling either way):

- ``proportional``: R_i = x_i+ / sum x+ R, the epsilon rule of sum-pooling over positive inputs;
- ``even``: R_i = [x_i > 0] / sum [x > 0] R.

If y is not positive, no input is, and the winner takes all. All of R is passed on.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, bind
from lrp_fx.rewrite.layer_runs import RUN
from lrp_fx.rules.functions import identity_rule, nonzero, share_relevance

aten = torch.ops.aten


def spread(graph: fx.Graph, node: Node, spec: OpSpec, divisor: str) -> Node:
    """Emit the rule of the selection ``node`` at the insertion point; returns its replacement.

    Args:
        graph: the rewritten graph.
        node: the selection.
        spec: its declaration; ``spec.extra["mean"]`` names the operator that averages over the same windows.
        divisor: the function of the inputs' positive part that is summed: "positive" (itself) or "sign".
    """
    slot = Slot(spec.args[0])
    bound = bind(node)
    x = bound[slot.name]
    constant = graph.call_function(aten.detach.default, (x,))
    part = graph.call_function(aten.clamp.default, (constant, 0))
    if divisor == "sign":
        part = graph.call_function(aten.sign.default, (part,))
    slope = graph.call_function(aten.div.Tensor, (part, graph.call_function(nonzero, (constant,))))
    positive = graph.call_function(identity_rule, (part, x, slope))
    mean = _operator(spec.extra["mean"])
    operands = bound | {slot.name: positive}
    arguments = [operands[a.name] for a in mean._schema.arguments if a.name in operands]
    totals = (graph.call_function(mean, tuple(arguments)), graph.node_copy(node))
    result = graph.call_function(aten.detach.default, (node,))
    tiny = torch.finfo(node.meta["val"].dtype).tiny  # outputs that do not take part in a share may have a divisor of 0
    for index, (total, sign) in enumerate(zip(totals, (1, -1), strict=True)):
        total.meta = {RUN: (index, 1, slot)}
        result = graph.call_function(share_relevance, (result, total, 1.0, sign, tiny))
    return result


def _operator(name: str) -> torch._ops.OpOverload:
    """The operator called "aten.mean.dim"."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
