"""Written-out steps of a captured graph become one loop in the rewritten graph.

The captured graph is copied with a separate graph for every written-out step, in which rules are carried out as
everywhere. The loop then runs the graph of a middle step as often as the input has steps, and other graphs for the
first and last steps. The written-out middle steps are compared: they must be alike.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Shift
from lrp_fx.errors import CaptureError
from lrp_fx.graph.location import locate
from lrp_fx.graph.loop import Body, CapturedLoop, Loop
from lrp_fx.graph.steps import STEP, Step, shown, step_of
from lrp_fx.operators.table import bind
from lrp_fx.plan import Plan
from lrp_fx.rewrite.layer_runs import RUN
from lrp_fx.rewrite.site import OWNER
from lrp_fx.rules.derivatives import own_derivatives


@dataclass
class StepGraph:
    """One step.

    Attributes:
        nodes: captured node of the step, or operand of one -> its copy in the graph of the step.
        graph: the graph of the step.
        computed: captured nodes of the step, in order.
        state: index in the next state -> captured node.
        outside: captured operands besides the rows and the state, in order.
        before: inputs for the state.
    """

    nodes: dict[Node, Node]
    graph: Graph
    computed: list[Node] = field(default_factory=list)
    state: dict[int, Node] = field(default_factory=dict)
    outside: list[Node] = field(default_factory=list)
    before: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Node | None], state: Sequence[Node | None]) -> StepGraph:
        """A step without nodes yet, with inputs for its rows and its state; None is an input that nobody reads."""
        step = cls({}, Graph(), [row for row in rows if row is not None])
        for node in rows:
            step.reads(node)
        step.before = [step.reads(node) for node in state]
        return step

    def reads(self, node: Node | None) -> Node:
        """Add an input of the step for a captured node; the first input counts if the node is in the state twice."""
        inputs = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(inputs[-1]) if inputs else nullcontext():
            fresh = node is not None and node not in self.nodes
            copy = self.graph.placeholder(node.name if fresh else f"input_{len(inputs)}")  # type: ignore[union-attr]
        if node is not None:
            copy.meta = {k: v for k, v in node.meta.items() if k == "val"}
            self.nodes.setdefault(node, copy)
        return copy

    def operand(self, node: Node) -> Node:
        """The copy of an operand."""
        if node not in self.nodes:
            self.outside.append(node)
            self.reads(node)
        return self.nodes[node]

    def add(self, node: Node, carried: Sequence[int]) -> Node:
        """Copy a captured node into the step; ``carried`` are its indices in the next state."""
        self.nodes[node] = self.graph.node_copy(node, self.operand)
        self.computed.append(node)
        self.state |= dict.fromkeys(carried, node)
        return self.nodes[node]

    @property
    def next_state(self) -> list[Node | None]:
        """Captured nodes of the next state; None where nobody reads it."""
        return [self.state.get(place) for place in range(len(self.before))]

    def finish(self) -> None:
        """Add the output: the next state; a tensor that nobody reads stays as it was."""
        pairs = zip(self.next_state, self.before, strict=True)
        self.graph.output(tuple(before if node is None else self.nodes[node] for node, before in pairs))


@dataclass
class Recurrence:
    """A recurrence of a captured graph.

    Attributes:
        node: the captured operator.
        steps: the written-out steps.
        loop: the call of the loop in the copied graph, after the last step.
    """

    node: Node
    steps: list[StepGraph] = field(default_factory=list)
    loop: Node | None = None

    @property
    def first_state(self) -> list[Node]:
        """The captured state before the first step."""
        return list(bind(self.node)["state"])

    @property
    def inputs(self) -> list[Node]:
        """The captured tensors with a row for each step."""
        x = bind(self.node)["x"]
        return [x] if isinstance(x, Node) else list(x)

    def rows(self, number: int) -> list[Node | None]:
        """The captured rows of a written-out step; None where nobody reads them."""
        read = {n.args[0]: n for x in self.inputs for n in x.users if n.target is step_of and self._reads(n, number)}
        return [read.get(x) for x in self.inputs]

    def _reads(self, row: Node, number: int) -> bool:
        step: Step = row.meta[STEP]
        return (step.operator, step.number) == (self.node.name, number)


class Layout:
    """A copy of a captured graph with every recurrence a loop.

    Attributes:
        graph: the copy.
        copies: captured node -> its copy, there or in the graph of a step.
        fixed: captured nodes that only mark the start or the end of a loop, without a rule.
    """

    def __init__(self, captured: Graph) -> None:
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.fixed: set[Node] = set()
        results: list[Any] = captured.find_nodes(op="call_function", target=shown)
        self._recurrences = {node.meta[STEP].operator: Recurrence(node.args[0].args[0]) for node in results}
        operators = [recurrence.node for recurrence in self._recurrences.values()]
        hidden = {*operators, *(item for node in operators for item in node.users)}
        for node in captured.nodes:
            step: Step | None = node.meta.get(STEP)
            if node in hidden:
                continue
            if step is None or node.op == "get_attr":
                self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
            elif step.operator in self._recurrences:  # otherwise it has no reader
                recurrence = self._recurrences[step.operator]
                ends = node.target is shown
                self.copies[node] = self._end(recurrence, step) if ends else _step(recurrence, node, step)
                self.fixed |= {node} if node.target in (shown, step_of) else set()
                self.copies[node].meta |= {"val": node.meta["val"]}
        self.graph._codegen = captured._codegen

    def around(self, node: Node) -> Mapping[Node, Node]:
        """Captured node -> its copy, for the graph (main or step) that has the copy of ``node``."""
        step: Step | None = node.meta.get(STEP)
        inside = step is not None and step.number >= 0 and node.op != "get_attr"
        return self._recurrences[step.operator].steps[step.number].nodes if inside else self.copies  # type: ignore[union-attr]

    def _end(self, recurrence: Recurrence, step: Step) -> Node:
        """The result of a recurrence as an item of its loop's results."""
        if recurrence.loop is None:
            bound = bind(recurrence.node)
            operands = [*recurrence.inputs, bound["sizes"], *recurrence.first_state]
            for one in recurrence.steps:
                one.finish()
                operands += one.outside
            copies = [n if n is None else self.copies[n] for n in operands]
            recurrence.loop = self.graph.call_function(Loop, tuple(copies))
            recurrence.loop.meta = {k: v for k, v in recurrence.node.meta.items() if k != STEP}
        return self.graph.call_function(operator.getitem, (recurrence.loop, step.carried[0]))

    def finish(self, plan: Plan, results: dict[Node, Node]) -> None:
        """Make loops of the steps, after rules are carried out; steps that are alike share copies and ``results``.

        Raises:
            CaptureError: if rules differ between middle steps.
        """
        for recurrence in self._recurrences.values():
            if recurrence.loop is not None:
                self._finish(recurrence, plan, results)

    def _finish(self, recurrence: Recurrence, plan: Plan, results: dict[Node, Node]) -> None:
        steps, loop = recurrence.steps, recurrence.loop
        assert loop is not None
        for step in steps:
            step.graph.eliminate_dead_code()
        start, end = _alike(steps, plan)
        if end - start < 2:
            raise CaptureError(
                f"under the rules {plan.ruleset.name!r} the steps of a recurrence differ from one another: "
                f"{locate(recurrence.node)}.\nRemedy: convert(..., dynamic=False) writes out every step."
            )
        for step in steps[start + 1 : end]:
            for node, twin in zip(step.computed, steps[start].computed, strict=True):
                self.copies[node], results[node] = self.copies[twin], results[twin]
        states, inputs = len(recurrence.first_state), len(recurrence.inputs)
        arguments: list[Any] = list(loop.args)
        first, constants = arguments[: inputs + 1 + states], arguments[inputs + 1 + states :]
        places = [sum(len(s.outside) for s in steps[:i]) for i in range(len(steps))]
        read: list[Node] = []
        bodies: dict[int, Body] = {}
        for index in (*range(start + 1), *range(end, len(steps))):
            step, begin = steps[index], len(read)
            reads = constants[places[index] : places[index] + len(step.outside)]
            read += [*reads, *_hoisted(step, plan, dict(zip(step.outside, reads, strict=True)), loop)]
            bodies[index] = Body(_body(step.graph), slice(begin, len(read)))
        front, back = (tuple(bodies[i] for i in bodies if i < start), tuple(bodies[i] for i in bodies if i >= end))
        outputs = recurrence.node.target.outputs if isinstance(recurrence.node.target, CapturedLoop) else 1
        backwards = bool(bind(recurrence.node).get("backwards"))
        loop.target = Loop(front, bodies[start], back, states, backwards, inputs, outputs)
        loop.args = (*first, *read)


def _step(recurrence: Recurrence, node: Node, step: Step) -> Node:
    """A node of a step, in the graph of that step."""
    if step.number == len(recurrence.steps):
        state = recurrence.steps[-1].next_state if recurrence.steps else recurrence.first_state
        recurrence.steps.append(StepGraph.of(recurrence.rows(step.number), state))
    if node.target is step_of:
        return recurrence.steps[step.number].nodes[node]
    return recurrence.steps[step.number].add(node, step.carried)


def _body(graph: Graph) -> fx.GraphModule:
    own_derivatives(graph)
    graph.lint()
    return fx.GraphModule(nn.Module(), graph, class_name="Step")


def _hoisted(step: StepGraph, plan: Plan, around: Mapping[Node, Node], loop: Node) -> list[Node]:
    """Move computations on constants without relevance, which are the same in every step, in front of the loop.

    Returns:
        The moved nodes that the step reads, in the order of its new inputs.
    """
    outside = {step.nodes[n]: copy for n, copy in around.items() if n not in plan.differentiable}
    graph = step.graph
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        if node.op == "call_function" and operands and outside.keys() >= {*operands} and RUN not in node.meta:
            with loop.graph.inserting_before(loop):
                outside[node] = loop.graph.node_copy(node, outside.__getitem__)
            outside[node].meta = {k: v for k, v in node.meta.items() if k != OWNER}
    hoisted = [node for node in outside if node.op == "call_function"]
    read = [node for node in hoisted if any(user not in outside for user in node.users)]
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in read:
        with graph.inserting_after(inputs[-1]):
            inputs.append(graph.placeholder(f"{node.name}_before"))
        inputs[-1].meta = {k: v for k, v in node.meta.items() if k == "val"}
        node.replace_all_uses_with(inputs[-1])
    for node in reversed(hoisted):
        graph.erase_node(node)
    return [outside[node] for node in read]


def _alike(steps: Sequence[StepGraph], plan: Plan) -> tuple[int, int]:
    """(first, past the last) of the steps around the middle that are alike."""
    start = len(steps) // 2
    end = start + 1
    while start and _same(steps[start - 1], steps[start], plan):
        start -= 1
    while end < len(steps) and _same(steps[end - 1], steps[end], plan):
        end += 1
    return start, end


def _same(one: StepGraph, other: StepGraph, plan: Plan) -> bool:
    """Whether two steps have the same forward, backward and ledger entries."""
    nodes, twins = list(one.graph.nodes), list(other.graph.nodes)
    if len(nodes) != len(twins) or one.outside != other.outside:
        return False
    places = {node: i for graph in (nodes, twins) for i, node in enumerate(graph)}
    written = [[_written(node, places) for node in graph] for graph in (nodes, twins)]
    decided = [[_decided(plan, node) for node in step.computed] for step in (one, other)]
    return written[0] == written[1] and decided[0] == decided[1]


def _written(node: Node, places: Mapping[Node, int]) -> tuple[Any, ...]:
    arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: ("node", places[n]))
    target = "" if node.op == "placeholder" else node.target
    return (node.op, target, arguments, node.meta.get(RUN))


def _shifted(shift: Shift | None) -> tuple[Any, ...]:
    """A constant plus signals, without names of nodes."""
    if shift is None:
        return ()
    signals = tuple((slot, weight) for _, slot, weight in shift.signals)
    constants = tuple((str(type(c)), weight) for c, weight in shift.constants)
    return len(shift.sums), signals, constants, tuple(slot for _, slot in shift.moved)


def _decided(plan: Plan, node: Node) -> tuple[Any, ...]:
    """The parts of a decision that the ledger reads, without names of nodes."""
    carrying = tuple(plan.facts.operands.get(node, ()))
    decision = plan.decisions.get(node)
    if decision is None:
        return (carrying, plan.stopped.get(node))
    terms = [(t.weighs, t.leaf.slot, _shifted(t.leaf.shift)) for t in decision.terms]
    layer = plan.facts.layers.get(node)
    return (
        carrying, decision.role, decision.rule, tuple(decision.live), decision.factors, decision.softmax_share, terms,
        layer,
    )  # fmt: skip
