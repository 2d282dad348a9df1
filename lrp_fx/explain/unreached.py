"""Why a target has no gradient: the node that stops relevance, and the target to explain instead."""

from __future__ import annotations

from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Captured
from lrp_fx.explain.sweep import UNREACHED
from lrp_fx.graph.location import locate, module_path
from lrp_fx.plan import Plan


def unreached(captured: Captured, plan: Plan) -> str:
    """Error message for a target without a gradient; behind a softmax that the rule set stops (probabilities,
    log-probabilities, a loss) it names the logits."""
    stopped = _stopped_softmax(captured, plan)
    if stopped is None:
        return UNREACHED
    logits = next(iter(plan.facts.operands[stopped].values()))
    return (
        f"the target lies behind a softmax, which rule set {plan.ruleset.name!r} stops: {locate(stopped)}.\n"
        f"Remedy: explain the logits, {_named(captured, logits)}; or choose rules that pass a softmax, "
        'such as rules="attnlrp".'
    )


def _stopped_softmax(captured: Captured, plan: Plan) -> Node | None:
    """The softmax nearest to the outputs where the rules stop relevance."""
    stack, seen = list(captured.graph_module.graph.output_node().all_input_nodes), set()
    while stack:
        node = stack.pop(0)
        if plan.stopped.get(node) == "softmax":
            return node
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return None


def _named(captured: Captured, logits: Node) -> str:
    """A node in words: the output of the model that it is, or the module that computes it."""
    flat = pytree.tree_leaves(captured.graph_module.graph.output_node().args[0])
    if logits in flat:
        places = pytree.tree_unflatten(list(range(captured.out_spec.num_leaves)), captured.out_spec)
        paths = {leaf: pytree.keystr(path) for path, leaf in pytree.tree_flatten_with_path(places)[0]}
        at = paths.get(flat.index(logits), "")
        return f"output{at} of the model: target=lambda output: output{at}[:, k]"
    path = module_path(logits)
    of = f"which module {path!r} returns" if path else "which the model does not return"
    return f"{locate(logits)}, {of}: convert the model without the operators behind them"
