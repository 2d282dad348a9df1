"""A node under rewrite, and the edits that rules make around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from lrp_fx.graph.operands import Slot, all_slots, replace
from lrp_fx.operators.table import OpSpec
from lrp_fx.plan import Decision, Plan
from lrp_fx.rewrite.layer_runs import RUN

OWNER = "lrp_node"  #: meta key of a rewritten node: the captured node whose decision put it there


@dataclass(frozen=True)
class Site:
    """A node of the rewritten graph before its rule is carried out.

    Attributes:
        graph: the rewritten graph.
        plan: the plan.
        copies: captured node -> its copy in the rewritten graph.
        captured: the captured node.
        node: its copy.
    """

    graph: Graph
    plan: Plan
    copies: Mapping[Node, Node]
    captured: Node
    node: Node

    @property
    def decision(self) -> Decision:
        """The decision at the node."""
        return self.plan.decisions[self.captured]

    @property
    def spec(self) -> OpSpec:
        """The declaration of its operator."""
        return self.plan.facts.specs[self.captured]

    def operand(self, slot: Slot) -> Node:
        """The operand in a slot."""
        return all_slots(self.node)[slot]

    def before(self, slot: Slot, target: Callable[..., Any], *args: Any) -> Node:
        """Insert ``target`` between the node and the operand in ``slot``."""
        operand = self.operand(slot)
        with self.graph.inserting_before(self.node):
            new = self.graph.call_function(target, (operand, *args))
        new.meta = dict(operand.meta) | {OWNER: self.node.meta.get(OWNER)}
        replace(self.node, slot, new)
        return new

    def take_over(self, anchor: Node, new: Node, inner: bool = True) -> Node:
        """Let ``new`` replace the node for all users but the nodes up to ``anchor``, which belong to its rule.

        Args:
            anchor: the next node before the rule was emitted.
            new: the replacement.
            inner: whether the other nodes of the rule also get the node's metadata (the ledger then reads them).
        """
        added = _between(self.node, anchor)
        for node in added if inner else (new,):  # only the replacement has the shape of the node
            meta = {k: v for k, v in self.node.meta.items() if k != "val" or node is new}
            node.meta = meta | {k: v for k, v in node.meta.items() if k == RUN}
        self.node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in added)
        return new


def insert_after(graph: Graph, node: Node, target: Callable[..., Any], *args: Any) -> Node:
    """Insert ``target(node, *args)`` after ``node`` and let it replace ``node`` for all users."""
    with graph.inserting_after(node):
        new = graph.call_function(target, (node, *args))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new


def _between(node: Node, end: Node) -> set[Node]:
    inside, current = set(), node.next
    while current is not end:
        inside.add(current)
        current = current.next
    return inside
