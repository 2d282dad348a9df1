"""Decomposition of operators that the op table does not declare into operators that it does.

PyTorch decomposes many operators: composite ones by their kernel, others by a table. A few have no decomposition, or
none that is differentiable everywhere (``passes.spellings``). A decomposition is traced with the captured values, so
that dynamic sizes stay dynamic, and replaces the operator one level at a time: declared operators stay whole, also
those that a user declares.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._guards import detect_fake_mode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from lrp_fx.capture.passes.functionalize import functionalise
from lrp_fx.capture.passes.normalize import drop_assertions, drop_inert, see_through
from lrp_fx.capture.passes.spellings import COMPLEX_SPELLINGS, SPELLINGS, sums_nothing
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.copies import splice
from lrp_fx.graph.operands import declared
from lrp_fx.graph.reach import from_inputs, is_floating
from lrp_fx.graph.steps import STEP
from lrp_fx.operators.schema import has_tag
from lrp_fx.operators.table import OpTable

_DEPTH = 8  #: of composites within composites
ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn")  #: metadata on where a node is from
_COPIED = (*ORIGIN, STEP)


def decompose(graph_module: fx.GraphModule, ops: OpTable) -> None:
    """Decompose every undeclared operator with a floating-point operand that depends on an input.

    So is a declared operator with a spelling, where such an operand steers it: one that its declaration does not name,
    as it is mostly a constant (the weight of ``lerp``). So is one that has no derivative for complex numbers, and an
    einsum that sums nothing. An operator without a decomposition into declared operators stays.
    """
    if _written_out(graph_module, ops, _DEPTH):
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        graph_module.recompile()


def _written_out(graph_module: fx.GraphModule, ops: OpTable, depth: int) -> bool:
    """Whether anything was replaced."""
    reached: set[Node] = set()
    changed = False
    for node in list(graph_module.graph.nodes):
        if node.op == "placeholder" or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
        if depth and any(asks(node, ops, reached) for asks in _REASONS):
            decomposed = _decomposed(graph_module, node, ops, depth)
            if decomposed is not None:
                reached |= put_in_place(graph_module, node, decomposed)
                changed = True
    return changed


def _is_undeclared(node: Node, ops: OpTable, reached: set[Node]) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and ops.get(node) is None
        and bool(node.users)
        and is_floating(node)
        and any(n in reached and is_floating(n) for n in node.all_input_nodes)
    )


def _is_steered(node: Node, ops: OpTable, reached: set[Node]) -> bool:
    """Whether an operand depends on an input that the declaration of an operator does not name."""
    if node.target not in SPELLINGS or (spec := ops.get(node)) is None:
        return False
    steering = set(node.all_input_nodes) - set(declared(node, spec).values())
    return any(n in reached and is_floating(n) for n in steering)


def _lacks_a_derivative(node: Node, ops: OpTable, reached: set[Node]) -> bool:
    """Whether it writes complex numbers that depend on an input into others, which PyTorch does not differentiate."""
    value = node.meta.get("val")
    complex_value = isinstance(value, Tensor) and value.is_complex()
    return node.target in COMPLEX_SPELLINGS and complex_value and any(n in reached for n in node.all_input_nodes)


def _only_multiplies(node: Node, ops: OpTable, reached: set[Node]) -> bool:
    """Whether it is an einsum that is an elementwise product, of factors that depend on an input."""
    einsum = node.target is torch.ops.aten.einsum.default and any(n in reached for n in node.all_input_nodes)
    return einsum and isinstance(node.args[0], str) and sums_nothing(node.args[0])


_REASONS = (_is_undeclared, _is_steered, _lacks_a_derivative, _only_multiplies)


def _decomposed(graph_module: fx.GraphModule, node: Node, ops: OpTable, depth: int) -> fx.GraphModule | None:
    """The operator as a graph of declared operators on its tensor operands, or None."""
    if isinstance(node.meta.get("val"), (tuple, list)) and any(u.target is not operator.getitem for u in node.users):
        return None
    for function in _decompositions(node.target):
        try:
            traced = traced_call(graph_module, node, function)
        except Exception:  # a kernel that reads values, or that knows no symbolic sizes
            continue
        _written_out(traced, ops, depth - 1)
        traced.graph.eliminate_dead_code()
        if not _has_undeclared(traced, ops):
            return traced
    return None


def _decompositions(target: Any) -> Iterator[Callable[..., Any]]:
    """The decompositions of an operator, the most direct one first."""
    for spellings in (SPELLINGS, COMPLEX_SPELLINGS):
        if target in spellings:
            yield spellings[target]
    if target._can_decompose():
        yield functools.partial(composite, target)
    if target in decomposition_table:
        yield decomposition_table[target]


def composite(target: Any, *args: Any, **kwargs: Any) -> Any:
    """One level of a composite operator, without function modes, which would return the operator itself."""
    with torch._C.DisableTorchFunction():
        return target.decompose(*args, **kwargs)


def traced_call(
    graph_module: fx.GraphModule,
    node: Node,
    function: Callable[..., Any],
    context: AbstractContextManager[Any] | None = None,
) -> fx.GraphModule:
    """The graph of a function of the arguments of ``node``, traced in a context; its inputs are the node's operands.

    Raises:
        Exception: if it reads values, or sizes that are symbolic.
    """
    operands = node.all_input_nodes
    mode, values = example_values(graph_module, operands)

    def run(*tensors: Any) -> Any:
        at = dict(zip(operands, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), at.__getitem__)
        result = function(*args, **kwargs)
        return tuple(result) if isinstance(result, tuple) else result  # a named tuple would be a call in the graph

    with torch.no_grad(), mode, context or nullcontext():
        traced = make_fx(run, pre_dispatch=True)(*values)
    drop_assertions(traced.graph)
    drop_inert(traced.graph)
    see_through(traced.graph)
    _name_views(traced.graph)
    if not functionalise(traced):
        raise NotImplementedError
    return traced


def _name_views(graph: fx.Graph) -> None:
    """``unsqueeze_`` -> ``unsqueeze``: all later readers of the tensor read the result of the call."""
    for node in graph.nodes:
        if has_tag(node, torch.Tag.inplace_view):
            twin = getattr(torch.ops.aten, node.target._opname.rstrip("_"))
            node.target = getattr(twin, node.target._overloadname, None) or twin.int


def value_of(graph_module: fx.GraphModule, node: Node) -> Any:
    """The captured value of a node."""
    if "val" in node.meta:
        return node.meta["val"]
    if node.op != "get_attr":
        raise NotImplementedError  # a node without a captured value
    return attribute(graph_module, node)


def example_values(
    graph_module: fx.GraphModule, nodes: Sequence[Node]
) -> tuple[AbstractContextManager[Any], list[Any]]:
    """A mode to trace in, and captured values as its inputs: all without data if one is, and detached."""
    values = [value_of(graph_module, n) for n in nodes]
    mode = detect_fake_mode(values)
    if mode is not None:
        values = [mode.from_tensor(v, static_shapes=True) if _is_real(v) else v for v in values]
    with torch.no_grad(), mode or nullcontext():  # nodes of a graph that was read may share a value
        return mode or nullcontext(), [v.detach() if isinstance(v, Tensor) else v for v in values]


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and detect_fake_mode([value]) is None


def _has_undeclared(traced: fx.GraphModule, ops: OpTable) -> bool:
    reached = from_inputs(traced.graph)
    return any(_is_undeclared(node, ops, reached) for node in traced.graph.nodes)


def put_in_place(owner: fx.GraphModule, node: Node, body: fx.GraphModule) -> set[Node]:
    """Inline a traced graph in place of ``node``; returns the new nodes."""
    result, copies = splice(owner, body, node.all_input_nodes, node)
    meta = {k: v for k, v in node.meta.items() if k in _COPIED}
    for inner, copy in copies.items():
        copy.meta = meta | ({"val": inner.meta["val"]} if "val" in inner.meta else {})
    new = set(copies.values())
    _hand_over(node, result, new)
    owner.graph.erase_node(node)
    return new


def _hand_over(node: Node, result: Any, new: set[Node]) -> None:
    """Let the users of ``node`` read ``result``, with the symbolic shapes of ``node``."""
    pairs = [(node, result)]
    if isinstance(result, (tuple, list)):
        pairs = [(user, result[user.args[1]]) for user in list(node.users)]  # type: ignore[index]
    for old, replacement in pairs:
        if replacement in new:
            replacement.meta["val"] = old.meta["val"]
        old.replace_all_uses_with(replacement)
        if old is not node:
            node.graph.erase_node(old)
