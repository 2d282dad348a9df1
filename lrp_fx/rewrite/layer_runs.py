"""Rules for layers with weights, as nodes of the graph: runs of the layer on parts of its input and weights.

A batch norm behind a layer, or in front of it with a ReLU in between, is folded into the weights of the runs
(canonization). The forward pass stays that of the model, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.fx import Node

from lrp_fx.analysis.facts import Layer
from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.operators.table import bind
from lrp_fx.rules.functions import (
    SIGNED_PARTS,
    favour_sign,
    identity_rule,
    nonzero,
    part_of_product,
    share_relevance,
)
from lrp_fx.rules.layer_rules import Run, Share
from lrp_fx.rules.ruleset import Rule

RUN = "lrp_run"  #: meta key of a run of a layer: (share, sign, slot of its input)
ENTERS = "lrp_enters"  #: meta key of what enters a layer in place of the batch norm and ReLU in front: the norm's name

aten = torch.ops.aten


def run_parts(
    graph: fx.Graph,
    node: Node,
    base: Node,
    layer: Layer,
    rule: Rule,
    shares: Sequence[Share],
    threshold: Node | None = None,
) -> Node:
    """Emit a rule on parts of a layer; returns the replacement of ``node``.

    Args:
        graph: the rewritten graph.
        node: the output of the layer, or of the normalization folded into it.
        base: the layer itself.
        layer: the slots of its input, weight and biases.
        rule: the rule, for its parameters.
        shares: shares of relevance and their runs.
        threshold: the normalization in front of the layer, to be folded together with the ReLU between them.
    """
    emit = _Emit(graph, base, layer, rule)
    if threshold is not None:
        emit.fold_threshold(threshold)
    if node is not base:
        emit.fold(node)
    result = emit.call(aten.detach.default, node)
    cache: dict[Run, Node] = {}
    for index, share in enumerate(shares):
        total: Node | None = None
        for run in share.runs:
            if run not in cache:
                cache[run] = emit.run(run)
            one = emit.copied(cache[run], (index, run.sign, emit.slot))
            operator = aten.add.Tensor if run.sign > 0 else aten.sub.Tensor
            total = one if total is None else emit.call(operator, total, one)
        result = emit.call(share_relevance, result, total, share.coefficient, share.sign, rule.get("epsilon"))
    return result


def run_favoured(
    graph: fx.Graph,
    node: Node,
    base: Node,
    layer: Layer,
    rule: Rule,
    threshold: Node | None = None,
    nonnegative: bool = False,
) -> Node:
    """Emit the generalised gamma rule in two runs: the layer itself, and the layer on magnitudes.

    Args:
        graph, node, base, layer, rule, threshold: as for :func:`run_parts`.
        nonnegative: whether the input has no negative entry, and so is its own magnitude.
    """
    emit = _Emit(graph, base, layer, rule)
    if threshold is not None:
        emit.fold_threshold(threshold)
    if node is not base:
        emit.fold(node)
    total = node if threshold is None else emit.copied(emit.run(Run("all", "all")), (0, 1, emit.slot))
    inputs = "all" if nonnegative else "magnitude"
    magnitudes = emit.copied(emit.run(Run(inputs, "magnitude")), (1, 1, emit.slot))
    value = emit.call(aten.detach.default, node)
    return emit.call(favour_sign, value, total, magnitudes, rule.get("gamma"), rule.get("epsilon"))


class _Emit:
    """Appends nodes behind a layer.

    Attributes:
        x: the tensor that receives the relevance of the layer's input.
        constant_x: the same tensor, detached.
        value: the input of the runs.
        gain: of a batch norm that is folded into the weights, which are multiplied by it; None without one.
        offset: added to the layer's output besides its biases, a tensor of the same shape.
        slot: slot of the input in the last node of a run.
    """

    def __init__(self, graph: fx.Graph, base: Node, layer: Layer, rule: Rule) -> None:
        self.graph, self.base, self.layer, self.rule = graph, base, layer, rule
        operands = all_slots(base)
        self.x, self.weight = operands[layer.input], operands[layer.weight]
        self.biases = {slot: operands[slot] for slot in layer.biases}
        self.dims = self.weight.meta["val"].dim()
        self.gain: Node | None = None
        self.constant_x = self.value = self.call(aten.detach.default, self.x)
        self.offset: Node | None = None
        self.slot = layer.input

    def call(self, target, *args, **kwargs) -> Node:
        """Append a call."""
        return self.graph.call_function(target, args, kwargs)

    def copied(self, run: Node, meta: tuple[int, int, Slot]) -> Node:
        """A run, marked with its share. A run in two shares is copied, as each share has its own cotangent."""
        new = run if RUN not in run.meta else self.graph.node_copy(run)
        new.meta = dict(new.meta) | {RUN: meta}
        return new

    def run(self, run: Run) -> Node:
        """The layer on one part of its input and weights."""
        operands = {
            self.layer.input: self._inputs(run.inputs),
            self.layer.weight: self._scaled_weights(run.weights),
        }
        for slot, bias in self.biases.items():
            operands[slot] = self._part(bias, run.weights) if run.bias else self.call(aten.zeros_like.default, bias)
        new = self._layer(operands)
        if self.offset is None:
            return new
        offset = self._part(self.offset, run.weights) if run.bias else self.call(aten.zeros_like.default, new)
        return self.call(aten.add.Tensor, new, offset)

    def _layer(self, operands: dict[Slot, Node]) -> Node:
        new = self.graph.node_copy(self.base)
        new.meta = {k: v for k, v in self.base.meta.items() if k != RUN}
        for slot, operand in operands.items():
            replace(new, slot, operand)
        return new

    def _inputs(self, part: str) -> Node:
        if part == "all" and self.offset is None:
            return self.x
        if part == "magnitude" and self.offset is None:
            return self.call(aten.abs.default, self.x)  # its gradient is its slope
        part_of_input = self._part(self.value, part)
        slope = self.call(aten.div.Tensor, part_of_input, self.call(nonzero, self.constant_x))
        return self.call(identity_rule, part_of_input, self.x, slope)

    def _scaled_weights(self, part: str) -> Node:
        """A part of the weights, times the gain."""
        if self.gain is None:
            return self._part(self.weight, part)
        if part in SIGNED_PARTS:
            return self.call(part_of_product, self.weight, self.gain, part)
        return self._part(self.call(aten.mul.Tensor, self.weight, self.gain), part)

    def _part(self, tensor: Node, part: str) -> Node:
        """A part of an input, of weights or of a bias (:class:`lrp_fx.rules.layer_rules.Run`)."""
        if part in SIGNED_PARTS:
            name, arguments = SIGNED_PARTS[part]
            return self.call(getattr(aten, name).default, tensor, **arguments)
        parameter = self.rule.get
        return {
            "all": lambda: tensor,
            "ones": lambda: self.call(aten.ones_like.default, tensor),
            "low": lambda: self.call(aten.full_like.default, tensor, parameter("low")),
            "high": lambda: self.call(aten.full_like.default, tensor, parameter("high")),
            # of degree 1 in a bias that carries relevance
            "square": lambda: self.call(aten.mul.Tensor, tensor, self.call(aten.detach.default, tensor)),
            "favour-positive": lambda: self.call(
                aten.add.Tensor, tensor, self._part(tensor, "positive"), alpha=parameter("gamma")
            ),
        }[part]()

    def _scale_and_shift(self, norm: Node) -> tuple[Node, Node]:
        """a and b of y = (z - mean) / sqrt(var + eps) * weight + bias = a z + b."""
        bound = bind(norm)
        root = self.call(aten.rsqrt.default, self.call(aten.add.Tensor, bound["running_var"], bound["eps"]))
        gain = root if bound["weight"] is None else self.call(aten.mul.Tensor, bound["weight"], root)
        shift = self.call(aten.neg.default, self.call(aten.mul.Tensor, bound["running_mean"], gain))
        return gain, shift if bound["bias"] is None else self.call(aten.add.Tensor, shift, bound["bias"])

    def _along(self, value: Node, dimension: int, dims: int) -> Node:
        shape = [-1 if d == dimension else 1 for d in range(dims)]
        return self.call(aten.reshape.default, value, shape)

    def fold(self, norm: Node) -> None:
        """Scale and shift the layer's output: a (w x + bias) + b."""
        assert self.layer.channels is not None
        gain, shift = self._scale_and_shift(norm)
        self.gain = self._along(gain, self.layer.channels, self.dims)
        for bias in self.biases.values():
            shift = self.call(aten.add.Tensor, shift, self.call(aten.mul.Tensor, bias, gain))
        if self.offset is not None:  # one constant: its positive part is that of the sum
            by_channel = [self._along(v, 1, norm.meta["val"].dim()) for v in (gain, shift)]
            scaled = self.call(aten.mul.Tensor, self.offset, by_channel[0])
            self.offset, shift = (
                self.call(aten.add.Tensor, scaled, by_channel[1]),
                self.call(aten.zeros_like.default, shift),
            )
        self.biases = {Slot("bias"): shift}

    def fold_threshold(self, norm: Node) -> None:
        """Scale and shift the layer's input z: w relu(a z + b) = (w a) (cut(z) - cut(0)) + w relu(b).

        ``cut`` cuts off at -b / a. Its value at 0 is a constant and belongs to the offset, so that a z near 0 has
        relevance near 0: the slope (cut(z) - cut(0)) / z is between 0 and 1.
        """
        assert self.layer.channels is not None
        gain, shift = self._scale_and_shift(norm)
        with self.graph.inserting_before(self.base):
            self.x = self.call(aten.alias.default, all_slots(norm)[Slot("input")])
        self.x.meta = {"val": norm.meta["val"], ENTERS: norm.name}
        z = self.constant_x = self.call(aten.detach.default, self.x)
        a, b = (self._along(v, 1, norm.meta["val"].dim()) for v in (self.call(nonzero, gain), shift))
        most = torch.finfo(norm.meta["val"].dtype).max  # a gain near 0 has its threshold beyond that
        least = self.call(aten.neg.default, self.call(aten.div.Tensor, b, a))
        least, rises = self.call(aten.clamp.default, least, -most, most), self.call(aten.gt.Scalar, a, 0)
        above, below = self.call(aten.maximum.default, z, least), self.call(aten.minimum.default, z, least)
        at_zero = (self.call(aten.clamp.default, least, 0), self.call(aten.clamp.default, least, None, 0))
        cut, origin = (self.call(aten.where.self, rises, *pair) for pair in ((above, below), at_zero))
        self.value = self.call(aten.sub.Tensor, cut, origin)
        shifts = self.call(aten.expand_as.default, self.call(aten.relu.default, b), z)
        zeros = {slot: self.call(aten.zeros_like.default, bias) for slot, bias in self.biases.items()}
        self.offset = self._layer({self.layer.input: shifts, self.layer.weight: self.weight, **zeros})
        for bias in self.biases.values():  # one constant: its positive part is that of the sum
            by_channel = self._along(bias, 1, self.base.meta["val"].dim())
            self.offset = self.call(aten.add.Tensor, self.offset, by_channel)
        self.biases = zeros
        self.weight = self.call(aten.mul.Tensor, self.weight, self._along(gain, 1 - self.layer.channels, self.dims))
        self.slot = Slot("self")
