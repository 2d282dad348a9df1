"""Stage 4, rewrite: every decision of a plan becomes a forward-exact change of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx import Graph, Node

from lrp_fx.capture import Captured
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.operands import Slot, all_slots, is_float, replace
from lrp_fx.operators.table import OpSpec, bind, set_arg
from lrp_fx.plan import Decision, Plan
from lrp_fx.rewrite.layer_runs import RUN, run_parts
from lrp_fx.rewrite.pooling import spread
from lrp_fx.rules.derivatives import own_derivatives
from lrp_fx.rules.factors import share_of_factors
from lrp_fx.rules.functions import (
    closed_identity_rule,
    constant_product,
    default_eps,
    epsilon_rule,
    identity_rule,
    normalization_rule,
    own_rule,
    rectified_rule,
    scale_relevance,
)
from lrp_fx.rules.layer_rules import PART_RULES
from lrp_fx.rules.ruleset import SPREADING, Rule
from lrp_fx.rules.slopes import closed_form, emit_slope

__all__ = ["Rewritten", "rewrite"]

OWNER = "lrp_node"  #: meta key of a rewritten node: the captured node whose decision put it there

_detach = torch.ops.aten.detach.default


@dataclass(frozen=True)
class Rewritten:
    """A rewritten graph.

    Attributes:
        graph_module: same call signature, output type and outputs as the captured one; its autograd is LRP.
        copies: captured node -> its copy in the rewritten graph.
        results: captured node -> the rewritten node that its users read.
        plan: the plan that was carried out.
    """

    graph_module: fx.GraphModule
    copies: dict[Node, Node]
    results: dict[Node, Node]
    plan: Plan


def rewrite(captured: Captured, plan: Plan) -> Rewritten:
    """Carry out ``plan`` on a copy of the captured graph. Parameters become constants to autograd, and stay shared."""
    graph, copies = copy_graph(captured.graph_module.graph)
    results = dict(copies)
    for old in captured.graph_module.graph.nodes:
        node = copies.get(old)
        if node is None:
            continue
        if old.op == "get_attr" and isinstance(_attribute(captured.graph_module, str(old.target)), torch.nn.Parameter):
            results[old] = _after(graph, node, _detach)
        elif old in plan.decisions:
            node.meta[OWNER] = old
            results[old] = _own(graph, _carry_out(graph, plan, copies, old, node), plan.decisions[old].rule)
        elif (old in plan.stopped or _touches(plan, old)) and _is_float_tensor(old):
            results[old] = _after(graph, node, _detach)
    graph.eliminate_dead_code()
    own_derivatives(graph)
    graph.lint()
    module = fx.GraphModule(captured.graph_module, graph, class_name="ExplainableGraph")
    return Rewritten(module, copies, results, plan)


def _attribute(root: torch.nn.Module, path: str) -> object:
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _touches(plan: Plan, old: Node) -> bool:
    """Whether autograd would flow into a node that relevance does not."""
    fed = old.op == "call_function" and any(n in plan.differentiable for n in old.all_input_nodes)
    return fed and old not in plan.differentiable


def _is_float_tensor(old: Node) -> bool:
    return is_float(old) and not isinstance(old.meta["val"], (tuple, list))


def _after(graph: Graph, node: Node, target, *args) -> Node:
    """Insert ``target(node, *args)`` after ``node`` and let it replace ``node`` for all users."""
    with graph.inserting_after(node):
        new = graph.call_function(target, (node, *args))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new


def _before(graph: Graph, node: Node, slot: Slot, target, *args) -> Node:
    """Insert ``target`` between ``node`` and the operand in ``slot``."""
    operand = all_slots(node)[slot]
    with graph.inserting_before(node):
        new = graph.call_function(target, (operand, *args))
    new.meta = dict(operand.meta) | {OWNER: node.meta.get(OWNER)}
    replace(node, slot, new)
    return new


def _carry_out(graph: Graph, plan: Plan, copies: dict[Node, Node], old: Node, node: Node) -> Node:
    """Rewrite one node; returns the node that its users read from now on."""
    decision, spec = plan.decisions[old], plan.facts.specs[old]
    for slot, operand in all_slots(old).items():
        constant = slot not in decision.live or decision.factors.get(slot) == 0
        if constant and operand in plan.differentiable:
            _before(graph, node, slot, _detach)
    _read_all_rows(node)
    if decision.rule.name in PART_RULES:
        return _parts(graph, plan, copies, old, node)
    if decision.rule.name in SPREADING:
        return _spread(graph, node, spec, decision.rule.name)
    if decision.rule.name in ("guided-backprop", "deconvnet"):
        return _rectified(graph, node, decision)
    if decision.rule.name == "identity" and decision.role == "normalization" and spec.kind == "normalization":
        return _normalization(graph, node, spec)
    if decision.rule.name == "identity" and spec.kind in ("nonlinearity", "function", "linear"):
        return _identity(graph, node, spec, decision)
    if "count" in spec.extra and decision.rule.name == "uniform":
        return _counted(graph, node, spec, decision)
    if spec.extra.get("constant") and Slot(str(spec.extra["constant"])) not in decision.live:
        operator: Any = node.target
        node.args, node.target = (operator, *node.args), constant_product
    result = _scale(graph, node, decision)
    if decision.rule.name == "epsilon" and (epsilon := decision.rule.get("epsilon", 0.0)):
        result = _after(graph, result, epsilon_rule, epsilon)
    return result


#: arguments of a lookup that change its derivative alone
_TRAINING = {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}


def _read_all_rows(node: Node) -> None:
    """Rows of a tensor that carries relevance receive theirs as they were read: padding rows too, however often."""
    bound = bind(node) if node.target is torch.ops.aten.embedding.default else {}
    for name, plain in _TRAINING.items():
        if bound.get(name, plain) != plain:
            set_arg(node, name, plain)


def _own(graph: Graph, result: Node, rule: Rule) -> Node:
    """A registered rule acts on what arrives, before its base does."""
    if not rule.own or isinstance(result.meta.get("val"), (tuple, list)):
        return result
    return _after(
        graph, result, own_rule, rule.own, list(rule.parameters), [float(v) for v in rule.parameters.values()]
    )


def _scale(graph: Graph, node: Node, decision: Decision) -> Node:
    """Multiply cotangents: once at the output where all operands get the same factor, else operand by operand."""
    factors = {slot: decision.factors.get(slot, 1.0) for slot in decision.live}
    scaled = {slot: factor for slot, factor in factors.items() if factor not in (0.0, 1.0)}
    if not scaled:
        return node
    alive = {factor for factor in factors.values() if factor != 0}
    if len(alive) == 1 and len(scaled) > 1 and not isinstance(node.meta.get("val"), (tuple, list)):
        return _after(graph, node, scale_relevance, alive.pop())
    for slot, factor in scaled.items():
        _before(graph, node, slot, scale_relevance, factor)
    return node


def _identity(graph: Graph, node: Node, spec: OpSpec, decision: Decision) -> Node:
    """y = f(x): f on a detached x (the same kernel, the same bits), and the cotangent by the slope.

    A slope in closed form is computed on the way back: x is all that is kept, and often its memory is kept anyway.
    """
    (slot,) = decision.live
    operand = all_slots(node)[slot]
    constant = _before(graph, node, slot, _detach)
    generic = spec if spec.kind == "nonlinearity" else OpSpec(spec.name, "nonlinearity")
    anchor = node.next
    with graph.inserting_before(anchor):
        if generic.slope is not None:
            new = graph.call_function(closed_identity_rule, (node, operand, closed_form(node, generic)))
        else:
            slope = emit_slope(graph, node, constant, generic)
            new = graph.call_function(identity_rule, (node, operand, slope))
    new.meta = dict(node.meta)
    inside = _between(node, anchor)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    return new


def _counted(graph: Graph, node: Node, spec: OpSpec, decision: Decision) -> Node:
    """A product along a dimension, y = x_1 ... x_n: the cotangent divided by the number of factors of each output.

    Factors of an operand that is a constant do not count.
    """
    operands = [all_slots(node)[Slot(name)] for name in spec.args]
    live = [Slot(name) in decision.live for name in spec.args]
    anchor = node.next
    with graph.inserting_before(anchor):
        constant = graph.call_function(_detach, (node,))
        share = graph.call_function(share_of_factors, (operands, live, str(spec.extra["count"]), _along(node)))
        new = graph.call_function(identity_rule, (constant, node, share))
    return _stand_in(node, anchor, new)


def _along(node: Node) -> list[Any]:
    """What says along which dimension, as far as the operator was given it."""
    bound = bind(node)
    return [bound[name] for name in ("dim", "keepdim", "index", "include_self") if name in bound]


def _parts(graph: Graph, plan: Plan, copies: dict[Node, Node], old: Node, node: Node) -> Node:
    """The layer (and what is folded into it) as it is, its relevance by runs on parts."""
    folded = plan.facts.folded.get(old)
    base = node if folded is None else all_slots(node)[Slot("input")]
    anchor = node.next
    with graph.inserting_before(anchor):
        layer = folded or old
        threshold = copies[plan.facts.thresholds[layer]] if layer in plan.facts.thresholds else None
        new = run_parts(graph, node, base, plan.facts.layers[layer], plan.decisions[old].rule, threshold)
    return _stand_in(node, anchor, new)


def _spread(graph: Graph, node: Node, spec: OpSpec, rule: str) -> Node:
    """The selection as it is, its relevance over its windows."""
    anchor = node.next
    with graph.inserting_before(anchor):
        new = spread(graph, node, spec, rule)
    return _stand_in(node, anchor, new)


def _stand_in(node: Node, anchor: Node, new: Node) -> Node:
    """Let ``new`` replace ``node`` for all but the nodes in front of ``anchor``, which belong to its rule."""
    inside = _between(node, anchor)
    for inner in inside:  # (of other shapes than the node, all but the one that stands for it)
        meta = {k: v for k, v in node.meta.items() if k != "val" or inner is new}
        inner.meta = meta | {k: v for k, v in inner.meta.items() if k == RUN}
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    return new


def _rectified(graph: Graph, node: Node, decision: Decision) -> Node:
    """Negative cotangents are cut; then the natural gradient (guided backpropagation), or 1 (DeconvNet).

    A product inside a nonlinearity that is spelled out has its natural gradient either way.
    """
    if decision.rule.name == "guided-backprop" or len(decision.live) > 1:
        return _after(graph, node, rectified_rule)
    (slot,) = decision.live
    operand = all_slots(node)[slot]
    _before(graph, node, slot, _detach)
    with graph.inserting_after(node):
        ones = graph.call_function(torch.ops.aten.ones_like.default, (node,))
    ones.meta = dict(node.meta)
    with graph.inserting_after(ones):
        new = graph.call_function(identity_rule, (node, operand, ones))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in (ones, new))
    return _after(graph, new, rectified_rule)


def _between(node: Node, end: Node) -> set[Node]:
    inside, current = set(), node.next
    while current is not end:
        inside.add(current)
        current = current.next
    return inside


def _normalization(graph: Graph, node: Node, spec: OpSpec) -> Node:
    bound, layout = bind(node), spec.extra["layout"]
    x, weight = bound["input"], bound.get("weight")
    if layout == "layer":
        width = len(bound["normalized_shape"])
    elif layout == "batch":
        width = 0
    else:
        width = -(bound["num_groups"] if layout == "group" else int(x.meta["val"].shape[1]))
    eps = bound["eps"] if bound["eps"] is not None else default_eps(x.meta["val"].dtype)
    _before(graph, node, Slot("input"), _detach)
    anchor = node.next
    with graph.inserting_before(anchor):
        if weight is not None and layout != "layer":
            along = [-1] + [1] * (x.meta["val"].dim() - 2)
            weight = graph.call_function(torch.ops.aten.reshape.default, (weight, along))
        new = graph.call_function(normalization_rule, (node, x, weight, width, eps, spec.extra["centred"]))
    new.meta = dict(node.meta)
    inside = _between(node, anchor)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    return new
