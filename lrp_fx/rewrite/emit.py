"""Emitters of the forms of the rule table (``rules.table``): one row of :data:`EMIT` for each.

An emitter keeps the node's value, bit by bit, and returns the node's replacement. The functions that it emits
(``rules.functions``) return their first argument; their backward is the rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lrp_fx.analysis.facts import Layer
from lrp_fx.graph.operands import Slot, addends, all_slots
from lrp_fx.operators.table import OpSpec, bind
from lrp_fx.rewrite.expansion import distributed
from lrp_fx.rewrite.layer_runs import run_favoured, run_parts
from lrp_fx.rewrite.pooling import spread
from lrp_fx.rewrite.site import Site, insert_after
from lrp_fx.rewrite.systems import solved
from lrp_fx.rules import table
from lrp_fx.rules.factors import share_of_factors
from lrp_fx.rules.formulas import default_eps
from lrp_fx.rules.functions import (
    closed_identity_rule,
    constant_product,
    epsilon_rule,
    favour_sign,
    identity_rule,
    normalization_rule,
    rectified_rule,
    scale_relevance,
)
from lrp_fx.rules.layer_rules import for_nonnegative
from lrp_fx.rules.slopes import closed_form, emit_slope

aten = torch.ops.aten
Node = torch.fx.Node


def emit(site: Site) -> Node:
    """Carry out the decision at one node; returns its replacement."""
    return EMIT[site.decision.form(site.captured, site.spec)](site)


def _scaled(site: Site) -> Node:
    """Cotangents times the plan's factors: at the output if all live operands have one factor, else at each."""
    node, decision = site.node, site.decision
    constant = site.spec.extra.get("constant")
    if constant and Slot(str(constant)) not in decision.live:
        operator: Any = node.target
        node.args, node.target = (operator, *node.args), constant_product
    factors = {slot: decision.factors.get(slot, 1.0) for slot in decision.live}
    scaled = {slot: factor for slot, factor in factors.items() if factor not in (0.0, 1.0)}
    if not scaled:
        return node
    alive = {factor for factor in factors.values() if factor != 0}
    if len(alive) == 1 and len(scaled) > 1 and not isinstance(node.meta.get("val"), (tuple, list)):
        return insert_after(site.graph, node, scale_relevance, alive.pop())
    for slot, factor in scaled.items():
        site.before(slot, scale_relevance, factor)
    return node


def _stabilised(site: Site) -> Node:
    """y / (y + epsilon sign y) behind the layer; nothing if epsilon is 0."""
    result, epsilon = _scaled(site), site.decision.rule.get("epsilon")
    return insert_after(site.graph, result, epsilon_rule, epsilon) if epsilon else result


def _slope(site: Site, centred: bool = False) -> Node:
    """y = f(x): f on a detached x (the same kernel, the same bits), and the cotangent times the slope.

    A slope in closed form is computed in the backward, from x alone, which is often saved for another operator anyway.
    ``centred`` asks for the slope of f(x) - f(0), where f(0) is a number.
    """
    (slot,) = site.decision.live
    node, operand = site.node, site.operand(slot)
    constant = site.before(slot, aten.detach.default)
    spec = site.spec if site.spec.kind == "nonlinearity" else OpSpec(site.spec.name, "nonlinearity")
    anchor = node.next
    with site.graph.inserting_before(anchor):
        if spec.slope is not None:
            new = site.graph.call_function(closed_identity_rule, (node, operand, closed_form(node, spec)))
        else:
            slope = emit_slope(site.graph, node, constant, spec, centred)
            new = site.graph.call_function(identity_rule, (node, operand, slope))
    return site.take_over(anchor, new, inner=False)


def _counted(site: Site) -> Node:
    """A product along a dimension, y = x_1 ... x_n: the cotangent divided by the number of factors of each output.

    Factors of a constant operand do not count.
    """
    node, spec = site.node, site.spec
    operands = [site.operand(Slot(name)) for name in spec.args]
    live = [Slot(name) in site.decision.live for name in spec.args]
    bound, anchor = bind(node), node.next
    along = [bound[name] for name in ("dim", "keepdim", "index", "include_self") if name in bound]
    with site.graph.inserting_before(anchor):
        constant = site.graph.call_function(aten.detach.default, (node,))
        share = site.graph.call_function(share_of_factors, (operands, live, str(spec.extra["count"]), along))
        new = site.graph.call_function(identity_rule, (constant, node, share))
    return site.take_over(anchor, new)


def _runs(site: Site) -> Node:
    """The layer, or the batch norm folded into it, with relevance by runs on parts."""
    base, layer, threshold = _layer(site)
    rule, shares_of = site.decision.rule, site.decision.entry.shares
    assert shares_of is not None
    shares = shares_of(rule.parameters)
    if threshold is None and _is_nonnegative(site, layer):
        shares = for_nonnegative(shares)
    anchor = site.node.next
    with site.graph.inserting_before(anchor):
        new = run_parts(site.graph, site.node, base, layer, rule, shares, threshold)
    return site.take_over(anchor, new)


def _favoured(site: Site) -> Node:
    """The layer, with relevance through itself and through the layer on magnitudes."""
    base, layer, threshold = _layer(site)
    anchor, nonnegative = site.node.next, threshold is None and _is_nonnegative(site, layer)
    with site.graph.inserting_before(anchor):
        new = run_favoured(site.graph, site.node, base, layer, site.decision.rule, threshold, nonnegative)
    return site.take_over(anchor, new)


def _summed(site: Site) -> Node:
    """The sum, with relevance through itself and through the sum of the addends' magnitudes."""
    graph, rule, anchor = site.graph, site.decision.rule, site.node.next

    def magnitude(slot: Slot, weight: float) -> Node:
        size = graph.call_function(aten.abs.default, (site.operand(slot),))
        return size if abs(weight) == 1 else graph.call_function(aten.mul.Tensor, (size, abs(weight)))

    with graph.inserting_before(anchor):
        sizes = [magnitude(slot, weight) for slot, weight in addends(site.captured, site.spec).items()]
        total = functools.reduce(lambda one, other: graph.call_function(aten.add.Tensor, (one, other)), sizes)
        value = graph.call_function(aten.detach.default, (site.node,))
        gamma, epsilon = rule.get("gamma"), rule.get("epsilon")
        new = graph.call_function(favour_sign, (value, site.node, total, gamma, epsilon))
    return site.take_over(anchor, new)


def _is_nonnegative(site: Site, layer: Layer) -> bool:
    facts = site.plan.facts
    return all_slots(facts.folded.get(site.captured, site.captured))[layer.input] in facts.nonnegative


def _layer(site: Site) -> tuple[Node, Layer, Node | None]:
    """(the layer at a node, its slots, the batch norm in front of the layer that is folded into it, or None).

    If the node is a batch norm that is folded into a layer, that is the layer in front of it.
    """
    facts = site.plan.facts
    layer = facts.folded.get(site.captured, site.captured)
    base = site.node if layer is site.captured else site.operand(Slot("input"))
    return base, facts.layers[layer], site.copies[facts.thresholds[layer]] if layer in facts.thresholds else None


def _windows(site: Site) -> Node:
    """The selection, with relevance divided among its windows."""
    anchor = site.node.next
    with site.graph.inserting_before(anchor):
        new = spread(site.graph, site.node, site.spec, site.decision.entry.window)
    return site.take_over(anchor, new)


def _rectified(site: Site) -> Node:
    """Negative cotangents are cut; the others are multiplied by the gradient (guided backpropagation) or 1 (DeconvNet).

    A product inside a written-out nonlinearity keeps its gradient under both.
    """
    graph, node, decision = site.graph, site.node, site.decision
    if decision.entry.natural or len(decision.live) > 1:
        return insert_after(graph, node, rectified_rule)
    (slot,) = decision.live
    operand = site.operand(slot)
    site.before(slot, aten.detach.default)
    anchor = node.next
    with graph.inserting_before(anchor):
        ones = graph.call_function(aten.ones_like.default, (node,))
        ones.meta = dict(node.meta)
        new = graph.call_function(identity_rule, (node, operand, ones))
    return insert_after(graph, site.take_over(anchor, new, inner=False), rectified_rule)


def _statistic(site: Site) -> Node:
    """A fused normalization with its statistic held constant in the backward."""
    node, spec = site.node, site.spec
    bound, layout = bind(node), spec.extra["layout"]
    x, weight = bound["input"], bound.get("weight")
    if layout == "layer":
        width = len(bound["normalized_shape"])
    elif layout == "batch":
        width = 0
    else:
        width = -(bound["num_groups"] if layout == "group" else int(x.meta["val"].shape[1]))
    eps = bound["eps"] if bound["eps"] is not None else default_eps(x.meta["val"].dtype)
    site.before(Slot("input"), aten.detach.default)
    anchor = node.next
    with site.graph.inserting_before(anchor):
        if weight is not None and layout != "layer":
            along = [-1] + [1] * (x.meta["val"].dim() - 2)
            weight = site.graph.call_function(aten.reshape.default, (weight, along))
        new = site.graph.call_function(normalization_rule, (node, x, weight, width, eps, spec.extra["centred"]))
    return site.take_over(anchor, new, inner=False)


#: form of the rule table -> its emitter
EMIT: dict[table.Form, Callable[[Site], Node]] = {
    table.PLAIN: _scaled,
    table.SCALED: _scaled,
    table.NATURAL: _scaled,
    table.REMAINDER: _scaled,
    table.ATTENTION: _scaled,
    table.STABILISED: _stabilised,
    table.DISTRIBUTED: distributed,
    table.SOLVED: solved,
    table.COUNTED: _counted,
    table.SLOPE: _slope,
    table.CENTRED: functools.partial(_slope, centred=True),
    table.STATISTIC: _statistic,
    table.RECTIFIED: _rectified,
    table.RUNS: _runs,
    table.FAVOURED: _favoured,
    table.SUMMED: _summed,
    table.WINDOWS: _windows,
}
