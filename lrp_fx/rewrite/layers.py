"""Rules for layers with weights, emitted into the graph: the layer run on parts of its input and weights.

A normalization over the batch that only scales and shifts a layer's output belongs to the layer here: its runs have the
folded weights (canonization), while the forward pass stays that of the model, bit by bit.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.analysis import Slot
from lrp_fx.analysis.facts import Layer
from lrp_fx.analysis.operands import all_slots, replace
from lrp_fx.optable import bind
from lrp_fx.parts import PART_RULES, Run
from lrp_fx.rewrite.ops import identity_rule, nonzero, share_relevance
from lrp_fx.ruleset import Rule

RUN = "lrp_run"  #: meta key of a run of a layer: (share, sign, slot of its input)

aten = torch.ops.aten


def run_parts(graph: fx.Graph, node: Node, base: Node, layer: Layer, rule: Rule) -> Node:
    """Emit a rule on parts; returns the node that stands for the output from now on.

    Args:
        node: the output of the layer, or of the normalization folded into it.
        base: the layer itself.
    """
    emit = _Emit(graph, base, layer, rule, fold=node is not base)
    result = emit.call(aten.detach.default, node)
    cache: dict[Run, Node] = {}
    for index, share in enumerate(PART_RULES[rule.name].shares(rule.parameters)):
        total: Node | None = None
        for run in share.runs:
            if run not in cache:
                cache[run] = emit.run(run)
            one = emit.copied(cache[run], (index, run.sign, layer.input))
            operator = aten.add.Tensor if run.sign > 0 else aten.sub.Tensor
            total = one if total is None else emit.call(operator, total, one)
        result = emit.call(share_relevance, result, total, share.coefficient, share.sign, rule.get("epsilon", 0.0))
    return result


class _Emit:
    """Appends nodes behind a layer."""

    def __init__(self, graph: fx.Graph, base: Node, layer: Layer, rule: Rule, fold: bool) -> None:
        self.graph, self.base, self.layer, self.rule = graph, base, layer, rule
        found = all_slots(base)
        self.x, self.weight = found[layer.input], found[layer.weight]
        self.biases = {slot: found[slot] for slot in layer.biases}
        self.plain_x = self.call(aten.detach.default, self.x)
        if fold:
            self._fold(next(iter(base.users)))

    def call(self, target, *args, **kwargs) -> Node:
        """Append a call."""
        return self.graph.call_function(target, args, kwargs)

    def copied(self, run: Node, meta: tuple[int, int, Slot]) -> Node:
        """A run, marked with the share it belongs to (a run in two shares is run twice: each has its own cotangent)."""
        new = run if RUN not in run.meta else self.graph.node_copy(run)
        new.meta = dict(new.meta) | {RUN: meta}
        return new

    def run(self, run: Run) -> Node:
        """The layer on one part of its input and weights."""
        operands = {
            self.layer.input: self._inputs(run.inputs),
            self.layer.weight: self._weights(self.weight, run.weights),
        }
        for slot, bias in self.biases.items():
            operands[slot] = self._weights(bias, run.weights) if run.bias else self.call(aten.zeros_like.default, bias)
        new = self.graph.node_copy(self.base)
        new.meta = {k: v for k, v in self.base.meta.items() if k != RUN}
        for slot, operand in operands.items():
            replace(new, slot, operand)
        return new

    def _inputs(self, part: str) -> Node:
        if part == "all":
            return self.x
        taken = {
            "positive": lambda: self.call(aten.clamp.default, self.plain_x, 0),
            "negative": lambda: self.call(aten.clamp.default, self.plain_x, None, 0),
            "ones": lambda: self.call(aten.ones_like.default, self.plain_x),
            "low": lambda: self.call(aten.full_like.default, self.plain_x, self.rule.get("low", 0.0)),
            "high": lambda: self.call(aten.full_like.default, self.plain_x, self.rule.get("high", 1.0)),
        }[part]()
        slope = self.call(aten.div.Tensor, taken, self.call(nonzero, self.plain_x))
        return self.call(identity_rule, taken, self.x, slope)

    def _weights(self, weight: Node, part: str) -> Node:
        if part == "all":
            return weight
        if part == "ones":
            return self.call(aten.ones_like.default, weight)
        if part == "square":
            return self.call(aten.square.default, weight)
        positive = part in ("positive", "favour-positive")
        clamped = self.call(aten.clamp.default, weight, *((0,) if positive else (None, 0)))
        if not part.startswith("favour"):
            return clamped
        return self.call(aten.add.Tensor, weight, clamped, alpha=self.rule.get("gamma", 0.25))

    def _fold(self, norm: Node) -> None:
        """Fold y = (z - mean) / sqrt(var + eps) * gain + shift into weights and bias."""
        bound = bind(norm)
        root = self.call(aten.rsqrt.default, self.call(aten.add.Tensor, bound["running_var"], bound["eps"]))
        gain = root if bound["weight"] is None else self.call(aten.mul.Tensor, bound["weight"], root)
        dims = self.weight.meta["val"].dim()
        along = [-1 if d == self.layer.channels else 1 for d in range(dims)]
        weight = self.call(aten.mul.Tensor, self.weight, self.call(aten.reshape.default, gain, along))
        offset = self.call(aten.neg.default, bound["running_mean"])
        for bias in self.biases.values():
            offset = self.call(aten.add.Tensor, offset, bias)
        offset = self.call(aten.mul.Tensor, offset, gain)
        if bound["bias"] is not None:
            offset = self.call(aten.add.Tensor, offset, bound["bias"])
        self.weight, self.biases = weight, {Slot("bias"): offset}
