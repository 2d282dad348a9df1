"""The second route: a recorded run, for models that ``torch.export`` cannot capture.

The model runs once on the example inputs, and every operator that it calls becomes a node of one graph; Python in
between (branches on values, loops over experts, caches, containers) runs as usual. The tensor values that Python reads,
and data-dependent sizes, are the *decisions* of the run, stored as a separate graph. The capture serves all inputs of
the same sizes with the same decisions; others are recorded anew. There are no graph breaks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import (
    get_proxy_mode,
    make_fx,
)
from torch.fx.traceback import preserve_node_meta
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from lrp_fx.capture.containers import returned
from lrp_fx.capture.output_check import check_output
from lrp_fx.capture.passes.control_flow import CarriedOut
from lrp_fx.capture.passes.detached import (
    GradientModes,
    detach_results,
    is_written,
    see_through_written,
    take_noted_off,
    take_switched_off,
)
from lrp_fx.capture.passes.normalize import see_through
from lrp_fx.capture.read_values import Reads, Transforms
from lrp_fx.capture.source_lines import SourceLines
from lrp_fx.graph.attribute_paths import attribute, readable
from lrp_fx.graph.lazy_module import lazy_module
from lrp_fx.graph.module_calls import hand_on, noting_calls
from lrp_fx.operators.schema import has_tag

aten = torch.ops.aten

_SCALARS = {aten.item.default, aten._local_scalar_dense.default}
_PLAIN_TYPES = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
#: fused backward kernels -> their decompositions
_BACKWARD = {op: decomposition for op, decomposition in decomposition_table.items() if "backward" in str(op)}


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    Attributes:
        graph_module: flat input leaves -> (tensor leaves of the output, tensors that were read, tensors of
            data-dependent size).
        out_spec: pytree structure of the output.
        leaves: leaves of the output; the tensors among them are outputs of the graph, in order.
        shaped: for each decision, whether it is the size of a tensor rather than its value.
    """

    graph_module: fx.GraphModule
    out_spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    shaped: tuple[bool, ...]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """In this context compiled parts of the model run in eager mode, and higher-order operators as plain Python."""
    unnoticed = torch._dynamo.config.patch(error_on_nested_fx_trace=False)
    with CarriedOut(), torch.compiler.set_stance("force_eager"), unnoticed:
        yield


@contextmanager
def _without_history(model: torch.nn.Module, differentiates: bool) -> Iterator[None]:
    """In this context gradients are on, so that the model's own switches are recorded, but no parameter requires one.

    A run that differentiates needs the gradients of its parameters.
    """
    parameters = [] if differentiates else [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _module_stacks(model: torch.nn.Module, spans: list[tuple[int, int, dict[str, Any]]]) -> Iterator[None]:
    """Append, for every module call, the range of its nodes and its module stack: (first, past the last, stack)."""
    paths = {module: name for name, module in model.named_modules()}
    stack: list[tuple[str, type]] = []
    starts: list[int] = []

    def count() -> int:
        mode = get_proxy_mode()
        return len(mode.tracer.graph.nodes) if mode is not None else 0

    def enter(module: torch.nn.Module, _: Any) -> None:
        stack.append((paths.get(module, ""), type(module)))
        starts.append(count())

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        spans.append((starts.pop(), count(), {path: (path, kind) for path, kind in stack}))
        stack.pop()

    with ExitStack() as hooks:
        hooks.callback(register_module_forward_pre_hook(enter).remove)
        hooks.callback(register_module_forward_hook(leave, always_call=True).remove)
        yield


def record(
    model: torch.nn.Module,
    call: Callable[..., Any],
    leaves: tuple[Any, ...],
    answers: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Recording:
    """As :func:`_record`; a run with autograd or ``vmap`` is recorded below these transforms.

    Parameters require gradients only in a run that differentiates: some operators (flexible attention) refuse them.
    """
    within, differentiates = False, False
    while True:
        try:
            return _record(model, call, leaves, answers(), within, differentiates)
        except Transforms as met:
            if differentiates:
                raise
            within, differentiates = True, met.differentiate


def _record(
    model: torch.nn.Module,
    call: Callable[..., Any],
    leaves: tuple[Any, ...],
    answers: AbstractContextManager[Any],
    within: bool,
    differentiates: bool,
) -> Recording:
    """Run ``call(*leaves)`` once and record it.

    Args:
        model: the model; the graph shares its parameters, under their names.
        call: runs the model, or a stand-in that computes the same from its parameters.
        leaves: flat inputs, tensors and constants.
        answers: a function mode that replaces some calls of the model (``lrp_fx.capture.passes.unroll_rnn``).
        within: whether to record below autograd and ``vmap``.
        differentiates: whether the run may differentiate.

    Raises:
        Exception: any error of the model itself.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    outputs: dict[str, Any] = {}
    reads = Reads(within, differentiates)
    spans: list[tuple[int, int, dict[str, Any]]] = []

    def run(*tensors: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        # the last mode is called first; Reads sees all calls
        with reads, answers, GradientModes(), SourceLines(), _uncompiled():
            output = call(*filled)
            check_output(output, owned)
        outputs["leaves"], outputs["spec"] = pytree.tree_flatten(returned(output))
        return [leaf for leaf in outputs["leaves"] if isinstance(leaf, Tensor)]

    options: dict[str, Any] = {}
    if within:
        options = {"pre_dispatch": False, "decomposition_table": _BACKWARD}
    with (
        _without_history(model, differentiates),
        _module_stacks(model, spans),
        noting_calls(model),
        preserve_node_meta(),
    ):
        inputs = [leaves[place].detach().clone() for place in places]
        traced = _trace(run, inputs, model, **options)
    if within:  # detaches of the author and of a derivative cannot be distinguished
        see_through(traced.graph)
    for node, stack in _stacks(list(traced.graph.nodes), spans):
        node.meta["nn_module_stack"] = stack
    graph_module, shaped = _finish(model, traced, {n.name for n in reads.nodes}, leaves, places)
    return Recording(graph_module, outputs["spec"], tuple(outputs["leaves"]), shaped)


def _trace(run: Callable[..., Any], inputs: list[Tensor], model: torch.nn.Module, **options: Any) -> fx.GraphModule:
    """Trace ``run(*inputs)``. Weights of unknown tensor types are temporarily inputs."""
    weights = [w for w in (*model.parameters(), *model.buffers()) if type(w) not in _PLAIN_TYPES]
    traced = make_fx(
        lambda *tensors: run(*tensors[: len(inputs)]),
        tracing_mode="real", _error_on_data_dependent_ops=False, **({"pre_dispatch": True} | options),
    )(*inputs, *weights)  # fmt: skip
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    for index, (node, weight) in enumerate(zip(placeholders[len(inputs) :], weights, strict=True)):
        setattr(traced, f"_weight_{index}", weight)
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.get_attr(f"_weight_{index}"))
        traced.graph.erase_node(node)
    return traced


def _stacks(
    nodes: list[fx.Node], spans: list[tuple[int, int, dict[str, Any]]]
) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """The innermost module stack of every node."""
    seen: set[fx.Node] = set()
    for first, end, stack in spans:  # inner calls end before outer ones
        for node in nodes[first:end]:
            if node not in seen:
                seen.add(node)
                yield node, stack


def _finish(
    model: torch.nn.Module, traced: fx.GraphModule, reads: set[str], leaves: tuple[Any, ...], places: list[int]
) -> tuple[fx.GraphModule, tuple[bool, ...]]:
    """Finish a traced graph: parameters under their names, a placeholder per leaf, decisions among the outputs."""
    owned = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    graph = traced.graph
    end = graph.output_node()
    read = [n.args[0] if n.target in _SCALARS else n for n in graph.nodes if n.name in reads or n.target in _SCALARS]
    sized = [t for n in graph.nodes if _size_depends_on_values(n) for t in _tensors_of(n)]
    end.args = ((list(end.args[0]), read, sized),)  # type: ignore[arg-type]
    graph_module = _with_names(traced, owned, leaves, places)
    return graph_module, tuple([False] * len(read) + [True] * len(sized))


def _with_names(traced: fx.GraphModule, owned: dict[str, Any], leaves: Any, places: list[int]) -> fx.GraphModule:
    """A recorded graph with attributes named as in ``owned``, and a placeholder per leaf."""
    graph = traced.graph
    names = {id(tensor): name for name, tensor in reversed(owned.items())}
    attributes: dict[str, Any] = {}
    first: dict[int, fx.Node] = {}  # a weight that is used again is one node, as in an exported graph
    for node in list(graph.nodes):
        if node.op == "get_attr":
            tensor = attribute(traced, node)
            if (earlier := first.setdefault(id(tensor), node)) is not node:
                node.replace_all_uses_with(earlier)
                graph.erase_node(node)
                continue
            node.target = readable(names.get(id(tensor), str(node.target)))
            attributes[str(node.target)] = tensor
            node.meta.setdefault("val", tensor)
    detach_results(graph, take_noted_off(graph) | take_switched_off(graph))
    see_through_written(graph)
    _complete_placeholders(graph, leaves, places)
    return lazy_module(attributes, graph, "RecordedModule")


def _complete_placeholders(graph: fx.Graph, leaves: Any, places: list[int]) -> None:
    """Add placeholders for constant inputs, so that all leaves are passed in order."""
    existing = dict(zip(places, [n for n in graph.nodes if n.op == "placeholder"], strict=True))
    with graph.inserting_before(next(iter(graph.nodes))):
        nodes = [graph.placeholder(f"leaf_{i}" if i in existing else f"constant_{i}") for i in range(len(leaves))]
    for i, old in existing.items():
        nodes[i].meta = dict(old.meta)
        old.replace_all_uses_with(nodes[i])
        graph.erase_node(old)


def _size_depends_on_values(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in _SCALARS:
        return False
    if node.target is aten.index.Tensor:  # only a boolean index decides a size
        return any(isinstance(i, fx.Node) and _is_mask(i) for i in node.args[1])  # type: ignore[union-attr]
    if has_tag(node, torch.Tag.dynamic_output_shape):
        return True
    return _is_composite(node.target) and any(map(_is_integer, node.all_input_nodes)) and not _runs_without_values(node)


def _is_composite(target: torch._ops.OpOverload) -> bool:
    """Whether an operator is composed of others (it then lacks their tags)."""
    keys = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.CompositeExplicitAutograd)
    return any(map(target.has_kernel_for_dispatch_key, keys))


def _runs_without_values(node: fx.Node) -> bool:
    """Whether the sizes of an operator's results follow from sizes alone: whether it runs on fake tensors."""
    with FakeTensorMode(allow_fallback_kernels=False):
        try:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), _fake)  # type: ignore[misc]
            node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # operators that need values raise errors of many types
            return False
    return True


def _fake(node: fx.Node) -> Any:
    """The value of a node as fake tensors of the current mode."""
    return pytree.tree_map_only(
        Tensor,
        lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device),
        node.meta.get("val"),
    )


def _tensors_of(node: fx.Node) -> list[fx.Node]:
    """The tensors of a node: its items if it is a list, else the node."""
    return [u for u in node.users if u.target is operator.getitem] or [node]


def _is_integer(node: fx.Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(t, Tensor) and not t.is_floating_point() and not t.is_complex() for t in leaves)


def _is_mask(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, Tensor) and val.dtype in (torch.bool, torch.uint8)


def functional(graph_module: fx.GraphModule, leaves: tuple[Any, ...]) -> fx.GraphModule:
    """Functionalise a recorded graph, by recording it again: no in-place operators, no writes through views.

    Writes into buffers, parameters and constants go to copies, which every run creates anew.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    _copy_written(graph_module)
    written = {node for node in graph_module.graph.nodes if node.op == "call_function" and is_written(node)}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            # a tensor computed from parameters and constants alone is an ordinary one, which takes no functional values
            wrap = n in written and isinstance(result, Tensor) and not isinstance(result, FunctionalTensor)
            return FunctionalTensor.to_functional(result) if wrap else result

    def run(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return Run(graph_module).run(*filled)

    mode = FunctionalTensorMode(pre_dispatch=True, export=True)  # `export` keeps composite operators whole
    with torch.no_grad(), preserve_node_meta():
        retraced = _trace(dispatch_functionalize(run, mode), [leaves[place].clone() for place in places], graph_module)
    owned = dict(graph_module.named_parameters()) | dict(graph_module.named_buffers())
    named = _with_names(retraced, owned, leaves, places)
    inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for old, new in zip(inputs, named.graph.nodes, strict=False):  # torch carries the metadata of operators along
        hand_on(old, new)
    return named


def _copy_written(graph_module: fx.GraphModule) -> None:
    """Insert a copy in front of the users of every attribute that is written."""
    graph = graph_module.graph
    first: dict[int, fx.Node] = {}
    for node in list(graph.find_nodes(op="get_attr")):
        earlier = first.setdefault(id(attribute(graph_module, node)), node)
        if earlier is not node:  # a read after a write must see the same memory
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)
    for node in filter(is_written, first.values()):
        with graph.inserting_after(node):
            copied = graph.call_function(aten.clone.default, (node,))
        node.replace_all_uses_with(copied, delete_user_cb=functools.partial(operator.is_not, copied))
    graph_module.recompile()
