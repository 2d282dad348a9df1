"""Where the nodes of a relevance graph come from: the captured node, its module, role and rule.

While a relevance graph is traced, nodes of the forward pass are noted for the captured node that is being computed, and
nodes of the backward pass for the captured node whose rule is running. Files for other viewers show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from lrp_fx.graph.location import module_path
from lrp_fx.plan import Plan
from lrp_fx.rewrite import OWNER

_ORIGIN = "lrp_origin"  #: meta key of a traced node


@dataclass(frozen=True)
class Origin:
    """Where a node of a relevance graph comes from.

    Attributes:
        node: the captured node.
        module: path of its module.
        role: its role; "" for a node without one, such as those of the choice of the target.
        rule: its rule.
        step: "forward", or "relevance" for its rule on the way back.
    """

    node: str
    module: str
    role: str
    rule: str
    step: str

    def __str__(self) -> str:
        place = f" in {self.module}" if self.module else ""
        return f"{self.step} of {self.node}{place}" + (f": {self.role}, rule {self.rule}" if self.role else "")


class Origins:
    """Notes the origins of nodes while a graph is traced; does nothing outside of a trace.

    Args:
        plan: the plan of the traced graph.
    """

    def __init__(self, plan: Plan) -> None:
        mode = get_proxy_mode()
        self._root: Any = None if mode is None else mode.tracer.graph._root  # type: ignore[attr-defined]
        self._last: Any = None if self._root is None else self._root._prev
        self._plan = plan
        self._current: Origin | None = None
        self._functions: set[Any] = set()  #: autograd functions that belong to a node, kept alive

    def enter(self, origin: Origin | None) -> None:
        """Nodes traced from now on come from there; None for nowhere."""
        if self._root is None:
            return
        node = self._root._prev
        while node is not self._last and node is not self._root:
            if self._current is not None:
                node.meta[_ORIGIN] = self._current
            node = node._prev
        self._last, self._current = self._root._prev, origin

    def of(self, node: Node, step: str) -> Origin:
        """The origin of a node of the tapped graph."""
        owner = node.meta.get(OWNER) or node
        decision = self._plan.decisions.get(owner)
        role, rule = ("", "") if decision is None else (decision.role, str(decision.rule))
        return Origin(owner.name, module_path(owner), role, rule, step)

    def follow(self, node: Node, result: Any) -> None:
        """Have the backward of what a node computed noted."""
        if self._root is None:
            return
        origin = self.of(node, "relevance")
        stack = [leaf.grad_fn for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        while stack:
            function = stack.pop()
            if function is None or function in self._functions:
                continue
            self._functions.add(function)
            function.register_prehook(lambda _: self.enter(origin))
            stack += [earlier for earlier, _ in function.next_functions]


def show_origins(graph: fx.Graph) -> None:
    """Write the origins of nodes to the metadata that exported programs and ONNX models keep, and viewers show."""
    for node in graph.nodes:
        origin = node.meta.get(_ORIGIN)
        if origin is not None:
            node.meta["custom"] = {"lrp_fx": dict(vars(origin))}
            node.meta["stack_trace"] = str(origin)
