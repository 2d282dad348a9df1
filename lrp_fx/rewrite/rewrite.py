"""Stage 4, rewrite: carry out the decisions of a plan in a copy of the captured graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx import Graph, Node

from lrp_fx.capture import Captured
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.dead_code import drop_dead
from lrp_fx.graph.lazy_module import lazy_module
from lrp_fx.graph.operands import all_slots, is_float
from lrp_fx.operators.table import bind, set_arg
from lrp_fx.plan import Plan
from lrp_fx.rewrite.emit import emit
from lrp_fx.rewrite.roll import Layout
from lrp_fx.rewrite.site import OWNER, Site, insert_after
from lrp_fx.rules.derivatives import own_derivatives
from lrp_fx.rules.functions import custom_rule
from lrp_fx.rules.ruleset import Rule

__all__ = ["OWNER", "Rewritten", "rewrite"]

_detach = torch.ops.aten.detach.default


@dataclass(frozen=True)
class Rewritten:
    """A rewritten graph.

    Attributes:
        graph_module: signature and outputs of the captured one; its gradients are those of the rules.
        copies: captured node -> its copy in the rewritten graph.
        results: captured node -> the rewritten node that replaces it for its users.
        plan: the plan.
    """

    graph_module: fx.GraphModule
    copies: dict[Node, Node]
    results: dict[Node, Node]
    plan: Plan


def rewrite(captured: Captured, plan: Plan) -> Rewritten:
    """Carry out ``plan`` on a copy of the captured graph. Parameters are detached and stay shared with the model."""
    layout = Layout(captured.graph_module.graph)
    graph, copies = layout.graph, layout.copies
    results = dict(copies)
    for old in captured.graph_module.graph.nodes:
        node = copies.get(old)
        if node is None or old in layout.fixed:
            continue
        if old.op == "get_attr" and isinstance(attribute(captured.graph_module, old), torch.nn.Parameter):
            results[old] = insert_after(graph, node, _detach)
        elif old in plan.decisions:
            node.meta[OWNER] = old
            results[old] = _carry_out(Site(node.graph, plan, layout.around(old), old, node))
        elif (old in plan.stopped or _touches(plan, old)) and _is_float_tensor(old):
            results[old] = insert_after(node.graph, node, _detach)
    layout.finish(plan, results)
    drop_dead(graph)
    own_derivatives(graph)
    graph.lint()
    module = lazy_module(captured.graph_module, graph, "ExplainableGraph")
    return Rewritten(module, copies, results, plan)


def _touches(plan: Plan, old: Node) -> bool:
    """Whether a node without relevance has an operand that autograd would differentiate."""
    fed = old.op == "call_function" and any(n in plan.differentiable for n in old.all_input_nodes)
    return fed and old not in plan.differentiable


def _is_float_tensor(old: Node) -> bool:
    return is_float(old) and not isinstance(old.meta["val"], (tuple, list))


def _carry_out(site: Site) -> Node:
    """Rewrite one node; returns its replacement for its users."""
    decision = site.decision
    for slot, operand in all_slots(site.captured).items():
        constant = slot not in decision.live or decision.factors.get(slot) == 0
        if constant and operand in site.plan.differentiable:
            site.before(slot, _detach)
    _read_all_rows(site.node)
    return _custom(site.graph, emit(site), decision.rule)


#: arguments of a lookup that only change its derivative
_TRAINING = {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}


def _read_all_rows(node: Node) -> None:
    """Reset the arguments of a lookup that change its derivative: padding rows receive relevance, too."""
    bound = bind(node) if node.target is torch.ops.aten.embedding.default else {}
    for name, plain in _TRAINING.items():
        if bound.get(name, plain) != plain:
            set_arg(node, name, plain)


def _custom(graph: Graph, result: Node, rule: Rule) -> Node:
    """Emit a registered rule behind the node: it changes the cotangent before its base rule does."""
    if not rule.custom or isinstance(result.meta.get("val"), (tuple, list)):
        return result
    return insert_after(
        graph, result, custom_rule, rule.custom, list(rule.parameters), [float(v) for v in rule.parameters.values()]
    )
