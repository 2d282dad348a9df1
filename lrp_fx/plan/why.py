"""Why a node has its role: the pattern that it matches, and for every other pattern the condition that fails."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch.fx import Graph, Node

from lrp_fx.analysis.candidates import Candidates
from lrp_fx.analysis.matching import Candidate
from lrp_fx.analysis.patterns import PATTERNS, Match, recognise
from lrp_fx.errors import LatentError
from lrp_fx.graph.location import module_path, source_line
from lrp_fx.graph.operands import is_float
from lrp_fx.operators.table import op_name
from lrp_fx.plan.make_plan import Plan, counts_position


@dataclass(frozen=True)
class Verdict:
    """Whether a node matches one pattern.

    Attributes:
        pattern: name of the pattern.
        variant: the spelling that matches, or the one in which most conditions hold.
        matches: whether all conditions hold.
        decides: whether the pattern gives the node its role.
        holds: the conditions that hold, in order.
        fails: the first condition that fails; "" if the pattern matches.
    """

    pattern: str
    variant: str
    matches: bool
    decides: bool
    holds: tuple[str, ...]
    fails: str


@dataclass(frozen=True)
class NodeReason:
    """Why one node has its role and its rule.

    Attributes:
        node: its name in the captured graph.
        op: its operator.
        module: path of the module that computes it.
        source: the line of code that created it.
        role: its role; "" if relevance cannot reach it.
        rule: its rule; "" if no relevance arrives.
        law: the law of its pattern, with its source.
        remark: why it has no relevance; "" if it has some.
        verdicts: one for each pattern of the table, the nearest first; empty if relevance cannot reach it.
    """

    node: str
    op: str
    module: str
    source: str
    role: str = ""
    rule: str = ""
    law: str = ""
    remark: str = ""
    verdicts: tuple[Verdict, ...] = ()


def why(graph: Graph, plan: Plan, where: str) -> list[NodeReason]:
    """The reason of every node that ``where`` names, in graph order.

    Args:
        graph: the captured graph.
        plan: a rule set applied to it.
        where: name of a node, path of a module (all nodes of it and of its submodules), or a glob of either.

    Raises:
        LatentError: if there is no such node or module.
    """
    chosen = _named(graph, where)
    reasons: dict[Node, NodeReason] = {}
    candidates = Candidates(plan.facts)
    for candidate in candidates.walk(graph, functools.partial(counts_position, plan)):
        if candidate.node in chosen:  # now, as the walk goes on to flatten products
            reasons[candidate.node] = _of_candidate(plan, candidate)
        if candidate.node in plan.stopped:
            candidates.stop(candidate.node)
    return [reasons[node] if node in reasons else _without_relevance(plan, node) for node in chosen]


def _named(graph: Graph, where: str) -> list[Node]:
    nodes = [node for node in graph.nodes if node.op != "output"]
    by_name = [node for node in nodes if fnmatchcase(node.name, where)]
    by_path = [node for node in nodes if node.op == "call_function" and _is_inside(module_path(node), where)]
    chosen = by_name or by_path
    if not chosen:
        names = [node.name for node in nodes] + [module_path(node) for node in nodes]
        near = get_close_matches(where, dict.fromkeys(filter(None, names)), n=5, cutoff=0.3)
        raise LatentError(
            f"why({where!r}): the captured graph has no node and no module of that name; close: "
            f"{', '.join(near) or ', '.join(dict.fromkeys(names[-5:]))}"
        )
    return chosen


def _is_inside(path: str, where: str) -> bool:
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), where) for end in range(len(parts)))


def _of_candidate(plan: Plan, candidate: Candidate) -> NodeReason:
    node, match = candidate.node, recognise(candidate)
    decision = plan.decisions.get(node)
    remark = ""
    if node in plan.stopped:
        remark = "The rule set stops relevance here."
    elif decision is None:
        remark = "No relevance arrives: its users hold it constant, or the output does not depend on it."
    return replace(
        _at(node),
        role=match.pattern.role,
        rule="" if decision is None else str(decision.rule),
        law=f"{match.pattern.law} {match.pattern.source}.",
        remark=remark,
        verdicts=tuple(sorted(_verdicts(candidate, match), key=_distance)),
    )


def _distance(verdict: Verdict) -> tuple[bool, bool, int]:
    """The deciding pattern first, then others that match, then those that do not, the nearest first."""
    return not verdict.decides, not verdict.matches, -len(verdict.holds)


def _verdicts(candidate: Candidate, match: Match) -> Iterable[Verdict]:
    for pattern in PATTERNS:
        decides, miss = pattern is match.pattern, pattern.miss(candidate)
        if miss is None:
            variant = pattern.match(candidate) or ""
            holds = [condition.says for condition in pattern.variants[variant]]
            yield Verdict(pattern.name, variant, True, decides, tuple(holds), "")
        else:
            holds = [condition.says for condition in pattern.variants[miss.variant][: miss.after]]
            yield Verdict(pattern.name, miss.variant, False, decides, tuple(holds), miss.condition.says)


def _without_relevance(plan: Plan, node: Node) -> NodeReason:
    return replace(_at(node), remark=next(says for says, holds in _REMARKS if holds(plan, node)))


def _at(node: Node) -> NodeReason:
    """The place of a node."""
    op = op_name(node) if node.op == "call_function" else node.op
    return NodeReason(node.name, op, module_path(node) or "<root>", source_line(node))


def _is_source(plan: Plan, node: Node) -> bool:
    return any(source.node is node for source in plan.sources)


def _is_declared_constant(plan: Plan, node: Node) -> bool:
    spec = plan.facts.ops.get(node)
    return spec is not None and spec.kind == "constant"


#: (why a node has no relevance, condition); the first one that holds counts
_REMARKS: tuple[tuple[str, Callable[[Plan, Node], bool]], ...] = (
    ("Relevance is collected here.", _is_source),
    (
        "It is a mask: an input that only selects what other tensors contribute.",
        lambda plan, node: node in plan.facts.masks,
    ),
    (
        "It is an input. Relevance is collected at the entries that it picks.",
        lambda plan, node: node.op == "placeholder",
    ),
    ("It is a parameter, a buffer or a constant.", lambda plan, node: node.op == "get_attr"),
    ("Its values are not floating-point.", lambda plan, node: not is_float(node)),
    ("Its operator carries no relevance, by the op table.", _is_declared_constant),
    ("Rules stop relevance at all its operands.", lambda plan, node: node in plan.facts.specs),
    ("It is computed from constants: none of its operands can carry relevance.", lambda plan, node: True),
)
