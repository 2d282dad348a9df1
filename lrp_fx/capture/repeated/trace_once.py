"""Repeated blocks are traced once while a model is exported.

A model of N equal layers runs N times through the same code, and a traced operator costs a hundred times the operator
itself, because its sizes are symbolic. Here the first call of a block is traced as ever. A later call that would be
traced alike is not run: the nodes of the first call are copied, with the inputs and parameters of the later one.

Which calls are alike is found before (:mod:`alike`): they do the same with the same of their inputs, and decide the
same about the same sizes. In the trace their inputs, parameters and buffers have to have the same form, too, with
symbolic sizes (:mod:`block_call`), and the nodes may take nothing else. If one of these does not hold, the model is
exported again with every block traced.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import no_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, track_tensor
from torch.overrides import _len_torch_function_stack
from torch.utils import _pytree as pytree

from lrp_fx.capture.as_run import LoopSeen, OverTime
from lrp_fx.capture.function_modes import only
from lrp_fx.capture.repeated.alike import PLAIN, Plan, Run, Unlike, plan
from lrp_fx.capture.repeated.answering import answered, has_hooks, is_answerable
from lrp_fx.capture.repeated.block_call import BlockCall, last_nodes, node_of
from lrp_fx.capture.repeated.module_stacks import Place, Stacks, call_counts, module_stack
from lrp_fx.capture.repeated.results import fresh_like
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.dimensions import example_size
from lrp_fx.graph.module_calls import ModuleCall, Notes, noting_calls, unnoted

_STACK = "nn_module_stack"
_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)
T = TypeVar("T")


def with_blocks_once(model: nn.Module, export: Callable[[], T]) -> T:
    """``export()`` with repeated blocks of ``model`` traced once; if that fails, with every block traced."""
    with noting_calls(model) as notes:
        blocks = RepeatedBlocks(model, notes)
        try:
            with blocks.copying():
                program = export()
            if not blocks.failed:
                return program
        except (LoopSeen, OverTime):
            raise
        except Exception:
            if not blocks.copied and not blocks.failed:
                raise
    with noting_calls(model):
        return export()


@dataclass(eq=False)
class _Traced:
    """A traced call of a block.

    Attributes:
        call: the call.
        nodes: its nodes, in order.
        after: the nodes of the call's tensors after the run: an operator that returns its argument renames it, and one
            that writes in place, too.
        output: flat outputs, and the nodes of those that are tensors.
        spec: their structure.
        place: where it is.
        calls: path of a module -> number of calls in it.
        inner: these calls.
    """

    call: BlockCall
    nodes: tuple[Node, ...]
    after: tuple[Node | None, ...]
    output: tuple[tuple[Any, Node | None], ...]
    spec: pytree.TreeSpec
    place: Place
    calls: dict[str, int]
    inner: tuple[ModuleCall, ...]

    @cached_property
    def is_self_contained(self) -> bool:
        """Whether the nodes are a function of the call's tensors and of sizes, and all outputs come from it."""
        inside = {*self.nodes, *self.call.nodes}
        owner = self.call.tracer.root
        return (
            all(_is_copied(node, owner) for node in self.nodes)
            and all(
                n in inside or _is_shared(n, owner)
                for node in self.nodes
                if not _is_size(node)
                for n in node.all_input_nodes
            )
            and all(node in inside for node in self.after)
            and all(node in inside for leaf, node in self.output if isinstance(leaf, Tensor))
            and all(isinstance(leaf, (Tensor, torch.SymInt, *PLAIN)) for leaf, _ in self.output)
        )


def _is_copied(node: Node, owner: nn.Module) -> bool:
    """Whether a node can be copied: an operator without a graph of its own and without sizes that depend on values."""
    if node.op == "get_attr":
        return isinstance(attribute(owner, node), Tensor)
    higher = isinstance(node.target, torch._ops.HigherOrderOperator)
    return node.op == "call_function" and not higher and not node.meta.get("unbacked_bindings")


def _is_shared(node: Node, owner: nn.Module) -> bool:
    """Whether a node from outside means the same in every block: a size, or a constant."""
    if node.op == "get_attr":
        return isinstance(attribute(owner, node), Tensor)
    return _is_size(node)


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), _SIZES)


@dataclass
class RepeatedBlocks:
    """The blocks of one export.

    Attributes:
        model: the model.
        notes: the module calls of the export.
        least: smallest number of modules of one kind that are worth the search for alike calls.
        copied: the blocks whose calls were copied.
        failed: whether the trace is not the one that was planned.
    """

    model: nn.Module
    notes: Notes
    least: int = 4
    copied: list[nn.Module] = field(default_factory=list)
    failed: bool = False
    _kinds: dict[int, int] = field(default_factory=dict)
    _plan: Plan | None = None
    _planned: bool = False
    _run: Run | None = None
    _number: int = 0
    _traced: dict[int, _Traced] = field(default_factory=dict)
    _modes: int = 0

    @contextmanager
    def copying(self) -> Iterator[None]:
        """In this context the repeated blocks of the model are traced once."""
        self._kinds, self._modes = _kinds(self.model), _len_torch_function_stack()
        modules = [m for m in self.model.modules() if id(vars(m)) in self._kinds]
        counts = collections.Counter(self._kinds[id(vars(m))] for m in modules if any(m.children()))
        with answered(modules if max(counts.values(), default=0) >= self.least else (), self._answer):
            yield

    def _answer(self, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Answer a call of a block."""
        if self._run is not None:
            return self._run.answer(module, forward, args, kwargs)
        mode = get_proxy_mode()
        if mode is None:
            return forward(module, *args, **kwargs)
        if not self._planned and vars(module) is vars(self.model):
            self._planned = True
            self._plan = self._alike(module, forward, args, kwargs, mode.tracer)
        if self._plan is None:
            return forward(module, *args, **kwargs)
        try:
            return self._as_planned(self._plan, module, forward, args, kwargs, mode.tracer)
        except Unlike:
            self.failed = True
            raise

    def _alike(self, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any], tracer: Any) -> Plan | None:
        """Which calls are alike, from runs that leave no trace."""

        def running(run: Run | None) -> None:
            self._run = run

        before, stack, counts = len(tracer.graph.nodes), dict(module_stack(tracer)), dict(call_counts(tracer))
        try:
            with (
                disable_proxy_modes_tracing(),
                no_python_dispatcher(),
                only(self._modes),
                _without_sizes(pytree.tree_leaves((args, kwargs))),
            ):
                example, keywords = _examples((args, kwargs))
                return plan(module, forward, example, keywords, self._kinds, running)
        finally:
            for node in last_nodes(tracer.graph, len(tracer.graph.nodes) - before):
                tracer.graph.erase_node(node)
            for contents, old in ((module_stack(tracer), stack), (call_counts(tracer), counts)):
                contents.clear()
                contents.update(old)

    def _as_planned(
        self, plan: Plan, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any], tracer: Any
    ) -> Any:
        """Trace or copy a call.

        Raises:
            Unlike: if it is not the call that was planned.
        """
        number = self._number
        if number >= len(plan.calls) or vars(plan.calls[number].module) is not vars(module):
            raise Unlike
        self._number += 1
        if number in plan.copies:
            self._number += plan.calls[number].within
            call = BlockCall.of(module, forward, args, kwargs, tracer)
            return self._copy(self._traced[plan.copies[number]], call)
        if number not in plan.sources:
            return forward(module, *args, **kwargs)
        if (call := BlockCall.of(module, forward, args, kwargs, tracer)) is None:
            raise Unlike
        output, self._traced[number] = self._trace(call, args, kwargs)
        return output

    def _trace(self, call: BlockCall, args: Any, kwargs: dict[str, Any]) -> tuple[Any, _Traced]:
        """Trace a call of a block that others will be copies of."""
        graph, noted, place = call.tracer.graph, len(self.notes.calls), Place.of(call.tracer)
        before = len(graph.nodes)
        output = call.forward(call.module, *args, **kwargs)
        nodes = last_nodes(graph, len(graph.nodes) - before)[::-1]
        flat, spec = pytree.tree_flatten(output)
        leaves = tuple((leaf, node_of(leaf, call.tracer)) for leaf in flat)
        inner = tuple(self.notes.calls[noted:])
        calls = {path: n - place.counts.get(path, 0) for path, n in call_counts(call.tracer).items()}
        traced = _Traced(call, tuple(nodes), call.current_nodes(), leaves, spec, place, calls, inner)
        if not call.is_intact(args, kwargs) or not traced.is_self_contained:
            raise Unlike
        return output, traced

    def _copy(self, block: _Traced, call: BlockCall | None) -> Any:
        """The output of a call whose nodes are copied from those of an earlier one."""
        earlier = block.call
        if call is None or (earlier.tracer, earlier.spec, earlier.form) != (call.tracer, call.spec, call.form):
            raise Unlike
        copies = dict(zip(earlier.nodes, call.nodes, strict=True))
        stacks, counts = Stacks(block.place, Place.of(call.tracer)), call_counts(call.tracer)
        tensors = _fresh(block) | {id(old): new for old, new in zip(earlier.tensors, call.tensors, strict=True)}
        for node in block.nodes:
            copies[node] = _copied(node, copies, call.tracer.graph, stacks)
        twins = {id(vars(a)): b for a, b in zip(_modules(earlier.module), _modules(call.module), strict=True)}
        for inner in block.inner:
            nodes = ([n and copies.get(n, n) for n in part] for part in (inner.arguments, inner.results))
            self.notes.add(ModuleCall(twins.get(id(vars(inner.module)), inner.module), *nodes))
        renamed = zip(earlier.tensors, block.after, strict=True)
        for leaf, written in (*renamed, *block.output):
            if written is not None and node_of(tensors[id(leaf)], call.tracer) is not copies[written]:
                track_tensor(tensors[id(leaf)], call.tracer.proxy(copies[written]), constant=None, tracer=call.tracer)
        for path, number in block.calls.items():
            counts[stacks.path(path)] = counts.get(stacks.path(path), 0) + number
        self.copied.append(call.module)
        return pytree.tree_unflatten([tensors.get(id(leaf), leaf) for leaf, _ in block.output], block.spec)


def _copied(node: Node, copies: dict[Node, Node], graph: fx.Graph, stacks: Stacks) -> Node:
    """The copy of a node. Constants, and sizes that depend on no copy, stand for themselves."""
    size = _is_size(node) and all(copies.get(n, n) is n for n in node.all_input_nodes)
    if size or node.op == "get_attr":
        return node
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: copies.get(n, n))
    packet = getattr(node.target, "overloadpacket", None)  # the tracer names nodes by it
    copy = graph.create_node(node.op, node.target, args, kwargs, packet and packet.__name__)  # type: ignore[arg-type]
    copy.meta = unnoted(node.meta)
    if _STACK in copy.meta:
        copy.meta[_STACK] = stacks.renamed(copy.meta[_STACK])
    return copy


def _fresh(block: _Traced) -> dict[int, Tensor]:
    """New tensors like the outputs of a block, by their ids.

    Raises:
        Unlike: if one cannot be made.
    """
    fresh: dict[int, Tensor] = {}
    operands = {id(tensor) for tensor in block.call.tensors}
    with disable_proxy_modes_tracing(), no_python_dispatcher(), torch._C.DisableTorchFunction():
        for leaf, _ in block.output:
            if isinstance(leaf, Tensor) and id(leaf) not in operands and id(leaf) not in fresh:
                copy = fresh_like(leaf) if type(leaf) is FakeTensor else leaf.clone()
                if copy.requires_grad != leaf.requires_grad or _strides(copy) != _strides(leaf):
                    raise Unlike
                fresh[id(leaf)] = copy
    return fresh


def _strides(tensor: Tensor) -> list[Any]:
    return [n.node.expr if isinstance(n, torch.SymInt) else n for n in tensor.stride()]


def _modules(module: nn.Module) -> list[nn.Module]:
    return [inner for _, inner in module.named_modules(remove_duplicate=False)]


def _kinds(model: nn.Module) -> dict[int, int]:
    """id of a module's namespace -> number of its kind: its class, and the kinds of its submodules by name.

    Only of the model and its modules that are not PyTorch's own. A module with hooks is of a kind of its own.
    """
    numbers: dict[Any, int] = {}
    kinds: dict[int, int] = {}

    def number(module: nn.Module) -> int:
        inner = tuple((name, number(child)) for name, child in module.named_children())
        kind = id(module) if has_hooks(module) or "forward" in vars(module) else (type(module), inner)
        kinds[id(vars(module))] = numbers.setdefault(kind, len(numbers))
        return kinds[id(vars(module))]

    number(model)
    blocks = [m for m in model.modules() if m is model or not type(m).__module__.startswith("torch.")]
    return {id(vars(m)): kinds[id(vars(m))] for m in blocks if is_answerable(m)} if is_answerable(model) else {}


@contextmanager
def _without_sizes(leaves: Sequence[Any]) -> Iterator[None]:
    """In this context fake tensors have plain sizes: their results are remembered, and no size depends on values."""
    mode: Any = detect_fake_mode(leaves)
    if mode is None:
        yield
        return
    before = mode.cache_enabled, mode.shape_env
    mode.cache_enabled, mode.shape_env = True, None
    try:
        yield
    finally:
        mode.cache_enabled, mode.shape_env = before


def _examples(tree: Any) -> Any:
    """Inputs at the sizes of the example, without values; the same tensor becomes the same tensor."""
    copies: dict[int, Tensor] = {}

    def example(leaf: Any) -> Any:
        if isinstance(leaf, torch.SymInt):
            return example_size(leaf)
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in copies:
            shape, strides = [example_size(n) for n in leaf.shape], [example_size(n) for n in leaf.stride()]
            fresh = torch.empty_strided(shape, strides, dtype=leaf.dtype, device=leaf.device)
            copies[id(leaf)] = fresh.requires_grad_() if leaf.requires_grad else fresh
        return copies[id(leaf)]

    return pytree.tree_map(example, tree)
