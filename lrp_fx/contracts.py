"""The contracts of each stage about the graph that it returns, as a table: stage -> contracts.

A contract is a function that yields the nodes that violate it, each with the reason. With ``LRP_FX_CHECK_STAGES=1`` in
the environment (as in the tests) every graph is checked at the end of its stage; otherwise nothing is checked.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.analysis import Facts
from lrp_fx.errors import ContractError
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.dimensions import example_size
from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.location import locate
from lrp_fx.graph.loop import with_steps
from lrp_fx.graph.values import Values, tensors_in
from lrp_fx.operators.schema import is_mutating
from lrp_fx.operators.table import OpTable
from lrp_fx.plan import Plan
from lrp_fx.rewrite import Rewritten
from lrp_fx.rules.functions import source

VARIABLE = "LRP_FX_CHECK_STAGES"


@dataclass(frozen=True)
class Stage:
    """The results up to a stage; those of later stages are None.

    Attributes:
        graph_module: the graph that the stage returns.
        ops: the op table.
        facts: result of analysis.
        plan: result of plan.
        rewritten: result of rewrite.
    """

    graph_module: fx.GraphModule
    ops: OpTable
    facts: Facts = None  # type: ignore[assignment]
    plan: Plan = None  # type: ignore[assignment]
    rewritten: Rewritten = None  # type: ignore[assignment]

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the graph."""
        return list(self.graph_module.graph.nodes)


Broken = Iterator[tuple[Node, str]]
Contract = Callable[[Stage], Broken]


def every_node_has_a_value(stage: Stage) -> Broken:
    """Analysis and passes read ``meta["val"]``; a node without users needs none."""
    for node in stage.nodes:
        if node.op != "output" and node.users and "val" not in node.meta:
            yield node, "it has none"


def nothing_is_written(stage: Stage) -> Broken:
    """Operators that write into an argument cannot be reordered, and autograd may reject them."""
    for node in stage.nodes:
        if is_mutating(node):
            yield node, "it writes into an argument"


def nothing_is_detached(stage: Stage) -> Broken:
    """The backward of a joint graph is part of it: a detach has no meaning any more."""
    for node in stage.nodes:
        if stage.ops.form(node) == "detach":
            yield node, "it detaches"


def every_call_is_an_operator(stage: Stage) -> Broken:
    """Operators with a schema, our :func:`exact_value`, Python functions that the op table declares, and sizes."""
    for node in stage.nodes:
        declared = _is_operator(node) or node.target is exact_value or stage.ops.get(node) is not None
        if node.op.startswith("call_") and not (node.op == "call_function" and declared):
            yield node, f"it is a {node.op} of {node.target}"


def no_call_has_a_derivative_of_its_own(stage: Stage) -> Broken:
    """Rules are autograd functions; a joint graph has the operators of their backward instead."""
    for node in stage.nodes:
        if node.op.startswith("call_") and not (node.op == "call_function" and _is_operator(node)):
            yield node, f"it is a {node.op} of {node.target}"


def _is_operator(node: Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem:
        return True
    return not isinstance(node.meta.get("val"), (Tensor, tuple, list))  # arithmetic on sizes


def every_attribute_exists(stage: Stage) -> Broken:
    """A graph reads attributes of its own module."""
    for node in stage.graph_module.graph.find_nodes(op="get_attr"):
        try:
            attribute(stage.graph_module, node)
        except AttributeError as error:
            yield node, str(error)


def every_carrying_node_is_declared(stage: Stage) -> Broken:
    """A node that carries relevance is a source, or the op table declares its operator."""
    sources = {item.node for item in stage.facts.sources}
    for node in stage.facts.operands:
        if node not in sources and node not in stage.facts.specs:
            yield node, "it is no source, and nothing declares it"


def every_carrying_operand_carries(stage: Stage) -> Broken:
    """The carrying operands of a node carry relevance themselves."""
    for node, operands in stage.facts.operands.items():
        for slot, operand in operands.items():
            if operand not in stage.facts.operands:
                yield node, f"its operand {slot.name} ({operand.name}) carries none"


def every_live_node_has_a_decision(stage: Stage) -> Broken:
    """A live operand is a source, or has a decision of its own."""
    collected = {item.node for item in stage.plan.sources} | stage.plan.facts.tabled
    for node, decision in stage.plan.decisions.items():
        for slot, operand in decision.live.items():
            decided = operand in collected or operand in stage.plan.decisions
            if decision.factors.get(slot, 1.0) != 0 and not decided:
                yield operand, f"relevance arrives from {node.name}, but it has no decision"


def every_factor_is_a_number_of_a_live_operand(stage: Stage) -> Broken:
    """A factor for another operand, or one that is not finite, would lose relevance silently."""
    for node, decision in stage.plan.decisions.items():
        for slot, factor in decision.factors.items():
            if slot not in decision.live or not math.isfinite(factor):
                yield node, f"its factor for {slot.name} is {factor}, and its live operands are {_named(decision.live)}"


def every_decision_is_in_the_graph(stage: Stage) -> Broken:
    """Nodes with relevance are reached from the output, so none of them is dead code."""
    there = set(with_steps(stage.graph_module.graph))
    for node in stage.plan.decisions:
        if stage.rewritten.results[node] not in there:
            yield node, "its replacement is not in the rewritten graph"


def every_rewritten_node_keeps_shape_and_dtype(stage: Stage) -> Broken:
    """Rules change the backward, never the forward: the graph is run on fake tensors to see that."""
    values = _run_on_fakes(stage.graph_module)
    for node, result in stage.rewritten.results.items():
        expected = _described(node.meta.get("val"))
        for rewritten in dict.fromkeys((stage.rewritten.copies.get(node, result), result)):
            actual = values.get(rewritten, _UNKNOWN)
            if isinstance(actual, Exception):
                yield rewritten, f"it does not run on fake tensors: {actual}"
            elif expected and _described(actual) and expected != _described(actual):
                yield node, f"it was {expected}, and is {_described(actual)}"


def every_parameter_is_a_constant(stage: Stage) -> Broken:
    """Autograd must not differentiate parameters: they are shared with the model."""
    for node in stage.graph_module.graph.find_nodes(op="get_attr"):
        if isinstance(attribute(stage.graph_module, node), nn.Parameter):
            for user in node.users:
                if stage.ops.form(user) != "detach":
                    yield user, f"it reads the parameter {node.target} itself"


def every_source_is_tapped(stage: Stage) -> Broken:
    """Besides the model's outputs, the graph returns one tap for every source."""
    end = stage.graph_module.graph.output_node()
    returned: Any = end.args[0]
    taps = returned[1]
    for tap in taps:
        if tap.target is not source:
            yield tap, "it is returned as a tap, but is no call of source()"
    if len(taps) != len(stage.plan.sources):
        yield end, f"{len(stage.plan.sources)} sources have {len(taps)} taps"


#: stage -> the contracts of the graph that it returns
CONTRACTS: dict[str, tuple[Contract, ...]] = {
    "capture": (
        every_node_has_a_value,
        nothing_is_written,
        every_call_is_an_operator,
        every_attribute_exists,
    ),
    "analysis": (every_carrying_node_is_declared, every_carrying_operand_carries),
    "plan": (every_live_node_has_a_decision, every_factor_is_a_number_of_a_live_operand),
    "rewrite": (
        nothing_is_written,
        every_attribute_exists,
        every_decision_is_in_the_graph,
        every_rewritten_node_keeps_shape_and_dtype,
        every_parameter_is_a_constant,
    ),
    "taps": (nothing_is_written, every_attribute_exists, every_source_is_tapped),
    "lowering": (
        every_node_has_a_value,
        nothing_is_written,
        nothing_is_detached,
        no_call_has_a_derivative_of_its_own,
        every_attribute_exists,
    ),
}


def check_stage(name: str, stage: Stage) -> None:
    """Check the contracts of a stage, if ``LRP_FX_CHECK_STAGES`` is set.

    Args:
        name: the stage, a key of :data:`CONTRACTS`.
        stage: its results.

    Raises:
        ContractError: if a contract is violated; it names contract, node, op, module path and source line.
    """
    if os.environ.get(VARIABLE, "") in ("", "0"):
        return
    for contract in CONTRACTS[name]:
        for node, wrong in contract(stage):
            says = contract.__name__.replace("_", " ")
            raise ContractError(
                f"after {name}, {says}: {wrong}, at {locate(node)}.\nThis is a fault of lrp_fx, or of an operator or "
                "rule that was registered with it: please report it with the model's code."
            )


_UNKNOWN: Any = object()  #: a value with data-dependent sizes


def _run_on_fakes(graph_module: fx.GraphModule) -> dict[Node, Any]:
    """Node -> its value on fake tensors with the sizes of the example inputs, or the error of a rule that does not run.

    Data-dependent values stay unknown. Parameters are read without their gradients, which another thread may be
    writing: making a fake tensor reads both.
    """
    tensors = {
        node: _without_gradient(attribute(graph_module, node)) for node in graph_module.graph.find_nodes(op="get_attr")
    }
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = graph_module.graph.find_nodes(op="placeholder")
        values = _OnFakes({node: _concrete(node.meta.get("val")) for node in inputs} | tensors)
        for node in graph_module.graph.nodes:
            if node.op in ("get_attr", "call_function"):
                values[node]
    return values


def _without_gradient(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class _OnFakes(Values):
    def run(self, node: Node, args: Any, kwargs: Any) -> Any:
        operands = [self[n] for n in node.all_input_nodes]
        if any(value is _UNKNOWN or isinstance(value, Exception) for value in operands):
            return _UNKNOWN
        try:
            return super().run(node, args, kwargs)
        except Exception as error:  # operators that need values raise errors of many types
            return _UNKNOWN if isinstance(node.target, torch._ops.OpOverload) else error


def _concrete(value: Any) -> Any:
    """A fake value with the sizes of the example inputs, in the current fake mode."""
    try:
        return pytree.tree_map(_at_example, value)
    except (TypeError, AttributeError):  # a data-dependent size
        return _UNKNOWN


def _at_example(leaf: Any) -> Any:
    if isinstance(leaf, torch.SymInt):
        return example_size(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    sizes, strides = ([example_size(n) for n in numbers] for numbers in (leaf.shape, leaf.stride()))
    return torch.empty_strided(sizes, strides, dtype=leaf.dtype, device=leaf.device)


def _described(value: Any) -> str:
    """Dtype and shape of every tensor in a value, at the sizes of the example inputs; "" if these are unknown."""
    try:
        return ", ".join(f"{v.dtype} {[example_size(n) for n in v.shape]}" for v in tensors_in(value))
    except TypeError:  # a data-dependent size
        return ""


def _named(slots: Any) -> str:
    return ", ".join(slot.name for slot in slots) or "none"
