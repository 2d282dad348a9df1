"""The first route: ``torch.export``, non-strict and pre-dispatch, with as many dynamic dimensions as possible."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import sympy
import torch
from torch import fx
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from lrp_fx.capture.as_run import OverTime, Watch
from lrp_fx.capture.captured import Captured
from lrp_fx.capture.containers import listed
from lrp_fx.capture.conventions import traceable
from lrp_fx.capture.function_modes import while_traced
from lrp_fx.capture.guards import Guard, Shapes
from lrp_fx.capture.packed import PackedSequences
from lrp_fx.capture.passes import normalize as normalise
from lrp_fx.capture.passes.detached import GradientModes, see_through_written
from lrp_fx.capture.passes.functionalize import functionalise
from lrp_fx.capture.passes.regions import inline_regions
from lrp_fx.capture.passes.unroll_rnn import written_out
from lrp_fx.capture.repeated.trace_once import with_blocks_once
from lrp_fx.capture.request import Request
from lrp_fx.capture.size_formulas import EQUAL, Unstorable, formula
from lrp_fx.capture.source_lines import SourceLines, without_stacks
from lrp_fx.capture.unlift import unlifted
from lrp_fx.errors import CaptureError, type_and_line
from lrp_fx.operators import fake_kernels  # noqa: F401  # registers its shape functions
from lrp_fx.status import stage

#: files of PyTorch that compute shapes and strides of the results of operators, below the traced level
_OPERATORS = tuple(
    f"{torch.__path__[0]}/{part}"
    for part in ("_ops.py", "_refs/", "_prims/", "_prims_common/", "_decomp/", "_subclasses/", "_meta_registrations.py")
)


def exports(
    request: Request,
    refusing: Sequence[Captured] = (),
    over_time: bool = False,
    kinds: frozenset[type] = frozenset(),
) -> Iterator[tuple[torch.export.ExportedProgram, bool]]:
    """Exported programs of a model, from the most general form of its example inputs to the example itself.

    Each comes with a flag: whether export was oblivious to sizes of one, where operators are then not proven to hold.
    Examples that one of the ``refusing`` captures serves are left out, as their program would refuse the call, too.

    Args:
        request: the model and its call.
        refusing: captures whose programs would refuse the call.
        over_time: whether to stop at loops over time.
        kinds: classes of modules that are exported as they run otherwise.

    Raises:
        OverTime: at a loop over time, if asked to stop there.
        Exception: the error of export for the most general form, if all forms fail.
    """
    failure: Exception | None = None
    refused = True
    for example, oblivious in _examples(*request.inputs, request.dynamic):
        if any(captured.serves(pytree.tree_leaves(example)) for captured in refusing):
            continue
        try:
            watch = Watch(kinds, over_time and request.dynamic)
            program, kinds = _export_as_run(request, example, oblivious, watch)
        except (CaptureError, OverTime):
            raise
        except Exception as error:  # export raises many types; each means "not this example"
            failure, refused = failure or error, True
            continue
        refused = False
        yield program, oblivious
    if not refused:
        return
    assert failure is not None
    if _in_control_flow(
        failure
    ):  # the strict mode knows more of it; flexible attention has no gradient on every device
        with request.effects.undone(fake=True), traceable(request.model), torch.no_grad():
            program = _export(request.model, *request.inputs, request.dynamic, strict=True)
        yield program, False
        return
    raise failure


def _export_as_run(
    request: Request, example: tuple[Any, Any], oblivious: bool, watch: Watch | None
) -> tuple[torch.export.ExportedProgram, frozenset[type]]:
    """Export; modules that run a loop only because they are exported run as usual (:mod:`lrp_fx.capture.as_run`).

    Returns:
        The program; the classes of these modules.
    """
    model, dynamic = request.model, request.dynamic
    while True:
        try:
            with (
                request.effects.undone(fake=True),
                torch.inference_mode(False),  # the caller's; inference mode inside of the model is noted
                traceable(model),
                torch.enable_grad(),
                written_out(model, dynamic, PackedSequences()),
                while_traced(model, [GradientModes(), SourceLines(watch)]),
                without_stacks(),
                nullcontext() if watch is None else watch.modules(),
            ):
                stage("export")
                program = with_blocks_once(model, lambda: _export(model, *example, dynamic, oblivious=oblivious))
                return program, frozenset() if watch is None else watch.kinds
        except OverTime:
            raise
        except Exception:
            if watch is None or not (watch.seen or watch.kinds):
                raise
            # without a loop seen, the modules cannot be exported as they run
            watch = Watch(watch.kinds | {watch.seen}, watch.over_time) if watch.seen else None


def _in_control_flow(error: BaseException) -> bool:
    """Whether an error was raised in a higher-order operator."""
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any("_higher_order_ops" in file or "flex_attention" in file for file in files)


def _grown(axes: Callable[[torch.Tensor], tuple[int, ...]]) -> Callable[[Any], Any]:
    """Repeat examples of size one along ``axes``, so that export does not specialize these dimensions."""

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for axis in axes(leaf):
            if leaf.dim() > axis and leaf.shape[axis] == 1:
                leaf = torch.cat([leaf, leaf], dim=axis)
        return leaf

    return grow


def _examples(args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> Iterator[tuple[tuple[Any, Any], bool]]:
    """Example inputs to try, the most general first, and whether export is oblivious to sizes of one."""
    if dynamic:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        lengths = any(t.dim() > 1 and t.shape[1] == 1 and not t.is_floating_point() for t in tensors)
        batches = any(t.dim() and t.shape[0] == 1 for t in tensors)
        if lengths:
            yield pytree.tree_map(_grown(lambda t: (0,) if t.is_floating_point() else (0, 1)), (args, kwargs)), True
        if batches:
            yield pytree.tree_map(_grown(lambda t: (0,)), (args, kwargs)), True
        yield (args, kwargs), True
    yield (args, kwargs), False


def _export(
    model: torch.nn.Module, args: Any, kwargs: Any, dynamic: bool, strict: bool = False, oblivious: bool = False
) -> torch.export.ExportedProgram:
    """Export; if ``oblivious``, a branch of the model on a size of one becomes a guard, not a specialization."""
    free = pytree.tree_map(
        lambda x: _free_dims(x, dynamic, oblivious) if isinstance(x, torch.Tensor) else None, (args, kwargs)
    )
    dims = listed(free)
    # export takes one specification for *args and one for **kwargs, by parameter name
    names = [n for n in _parameter_names(model, len(args))]
    spec = dict(zip(names, dims[0], strict=False)) | dims[1]
    # a failing export prints its graph to stderr; a graph that is not lazy is written as Python after every pass
    with (
        contextlib.redirect_stderr(io.StringIO()),
        _use_lazy_graph_module(not strict),  # the strict mode reads code that a lazy graph has not generated
        symbolic_config.patch(backed_size_oblivious=oblivious),  # type: ignore[attr-defined]
        torch._dynamo.config.patch(fake_tensor_cache_enabled=not _any_free(free)),
    ):
        return torch.export.export(model, args, kwargs, strict=strict, dynamic_shapes=spec or None)


def _any_free(free: Any) -> bool:
    """Whether any size is left free."""
    return any(dim is torch.export.Dim.AUTO for dim in pytree.tree_leaves(free))


def _free_dims(tensor: torch.Tensor, dynamic: bool, oblivious: bool) -> dict[int, Any]:
    """Axis -> dynamic (AUTO) or fixed (STATIC). Batch and sequence dimensions are dynamic.

    Of images and video only the batch is: strided convolutions on a symbolic height take export minutes, and a capture
    for a new size takes seconds. A size of one is fixed if ``oblivious``, as in an export that is not.
    """
    spatial = tensor.is_floating_point() and tensor.dim() >= 4
    fixed = {i for i, n in enumerate(tensor.shape) if (spatial and i > 0) or (oblivious and n == 1) or not dynamic}
    return {i: torch.export.Dim.STATIC if i in fixed else torch.export.Dim.AUTO for i in range(tensor.dim())}


def _parameter_names(model: torch.nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count > len(positional):
        raise CaptureError(
            f"{type(model).__name__}.forward takes *args: pass its {count} inputs by keyword, or wrap it in a module "
            "with named parameters"
        )
    return positional[:count]


def _size(dim: Any) -> int | str:
    return int(str(dim)) if str(dim).isdigit() else str(dim)


def shapes_of(graph: fx.Graph, inputs: Sequence[str], oblivious: bool) -> Shapes:
    """The sizes that an exported graph serves: dynamic and fixed sizes, guards, and reasons for fixed sizes.

    Args:
        graph: the graph; nodes need ``meta["val"]``.
        inputs: names of its tensor inputs.
        oblivious: whether export was oblivious to sizes of one.
    """
    placeholders = [n for n in graph.find_nodes(op="placeholder") if isinstance(n.meta.get("val"), torch.Tensor)]
    environment = _environment(placeholders)
    if environment is None:
        sizes = tuple(tuple(_size(d) for d in n.meta["val"].shape) for n in placeholders)
        return Shapes(sizes, {}, inputs=tuple(inputs))
    noted = _Noted(environment, [list(n.meta["val"].shape) for n in placeholders], oblivious)
    for guard in environment.guards:
        noted.relied(guard.expr, _line(guard.sloc), oblivious and _by_operator(guard.sloc))
    derived = noted.all_sizes(graph) if oblivious else ()
    return Shapes(
        tuple(tuple(_size(d) for d in dims) for dims in noted.dims), noted.limits(), _reasons(environment),
        tuple(noted.guards.values()), derived, tuple(inputs),
    )  # fmt: skip


def _environment(nodes: Sequence[Node]) -> Any:
    """The shape environment of captured values, or None."""
    modes = (v.fake_mode for n in nodes if isinstance(v := n.meta["val"], FakeTensor))
    return next((mode.shape_env for mode in modes), None)


def _line(place: SLoc) -> str:
    """The line of the model that depends on a size, or that of PyTorch if there is none."""
    return str(place.maybe_user_loc or place).strip("()")


def _by_operator(place: SLoc) -> bool:
    """Whether a guard comes from shape propagation of an operator, not from a branch of the model."""
    frame = place.framework_loc
    file = getattr(frame, "filename", None)
    return file is not None and file.startswith(_OPERATORS)


class _Noted:
    """The guards of a shape environment, as plain formulas of the sizes of inputs.

    Attributes:
        oblivious: whether export was oblivious to sizes of one.
        dims: sizes of the inputs; a size that is a formula of unknown symbols has its value in the example inputs.
        guards: text of the condition -> guard.
    """

    def __init__(self, environment: Any, dims: list[list[Any]], oblivious: bool) -> None:
        self.environment, self.oblivious = environment, oblivious
        self.hints = environment.backed_var_to_val
        self.free = {
            d.node.expr for sizes in dims for d in sizes if isinstance(d, torch.SymInt) and d.node.expr.is_Symbol
        }
        self.guards: dict[str, Guard] = {}
        self.dims = dims
        for sizes in dims:
            for axis, size in enumerate(sizes):
                if isinstance(size, torch.SymInt) and not size.node.expr.is_Symbol:
                    self._composed(sizes, axis, size.node.expr)

    def _composed(self, sizes: list[Any], axis: int, expression: sympy.Expr) -> None:
        """A size of an input that is a formula of others: it gets its text as a name, and a guard for the equation."""
        if expression.free_symbols and expression.free_symbols <= self.free:
            try:
                self.guards[str(expression)] = Guard([EQUAL, str(expression), formula(expression)])
                return
            except Unstorable:
                pass
        sizes[axis] = int(expression.xreplace(self.hints))

    def relied(self, condition: Any, place: str, layout: bool) -> None:
        """Add a guard for a condition; if it has no plain form, fix the sizes in it."""
        condition = self.environment.replace(condition)
        hints = {s: v for s, v in self.hints.items() if s in condition.free_symbols and s not in self.free}
        condition = condition.xreplace(hints)
        if condition == sympy.true or not condition.free_symbols <= self.free:  # other conditions are data-dependent
            return
        try:
            guard = Guard(formula(condition), place, layout)
        except Unstorable:
            self.fix(condition, place)
            return
        earlier = self.guards.get(str(condition))
        if earlier is None or earlier.layout:  # a branch of the model takes precedence
            self.guards[str(condition)] = guard

    def fix(self, expression: Any, place: str) -> None:
        """Fix all sizes in an expression to those of the example inputs."""
        for symbol in expression.free_symbols:
            self.guards.setdefault(f"{symbol} fixed", Guard([EQUAL, symbol.name, int(self.hints[symbol])], place))

    def limits(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest value of each symbol; at least 1.

        An export that is oblivious to sizes of one has a guard for every smallest value (:meth:`relied`).
        """
        bounds = {}
        for symbol in sorted(self.free, key=str):
            limits = self.environment.var_to_range[symbol]
            low = 1 if self.oblivious else max(limits.lower, 1)
            high = min(limits.upper, 2**63)  # int_oo compares with integers
            bounds[str(symbol)] = (int(low), int(high))
        return bounds

    def all_sizes(self, graph: fx.Graph) -> tuple[Any, ...]:
        """Every size in the graph that is a formula of the inputs' sizes."""
        values = pytree.tree_leaves([n.meta.get("val") for n in graph.nodes])
        sizes: list[Any] = [d for v in values if isinstance(v, torch.Tensor) for d in v.shape]
        expressions = {self.environment.replace(d.node.expr) for d in sizes if isinstance(d, torch.SymInt)}
        dimensions = []
        for expression in sorted((e for e in expressions if e.free_symbols), key=str):
            if expression.free_symbols <= self.free:
                try:
                    dimensions.append(formula(expression))
                except Unstorable:
                    self.fix(expression, "a size inside the graph")
        return tuple(dimensions)


def _places_of(environment: Any) -> list[tuple[Any, tuple[str, int]]]:
    """(symbol, (input, axis)) of every symbol that is the size of an input."""
    places = []
    for symbol, sources in environment.var_to_sources.items():
        for source in sources:
            name = source.name if isinstance(source.name, str) else source.name()
            if match := re.fullmatch(r"L\['(\w+)'\](.*)\.size\(\)\[(\d+)\]", name):
                places.append((symbol, (match[1] + match[2], int(match[3]))))
    return places


def _reasons(environment: Any) -> dict[tuple[str, int], str]:
    """(input, axis) -> the line of the model that fixed the size, as recorded by export."""
    lines, places = environment.replacements_slocs, _places_of(environment)
    return {at: f"the model computes with it at {_line(lines[symbol])}" for symbol, at in places if symbol in lines}


def plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported program as a functional GraphModule that shares the model's parameters.

    Raises:
        CaptureError: where PyTorch cannot make the graph functional, either.
    """
    graph_module = unlifted(program)
    inline_regions(graph_module)
    normalise.drop_assertions(graph_module.graph)
    normalise.drop_inert(graph_module.graph)
    see_through_written(graph_module.graph)
    if not functionalise(graph_module):
        try:
            program = program.run_decompositions({})
        except Exception as error:  # assertions of PyTorch, too
            raise CaptureError(
                f"the exported graph writes in place, and cannot be written otherwise: {type_and_line(error)}\n"
                "Remedy: capture='auto' records a run if that happens."
            ) from error
        graph_module = unlifted(program)
        inline_regions(graph_module)
        normalise.drop_assertions(graph_module.graph)
        see_through_written(graph_module.graph)
        functionalise(graph_module)
        normalise.mend(graph_module.graph)
    return graph_module
