"""Stage 1, capture: any ``nn.Module`` and example inputs -> a functional ATen graph that shares its parameters."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export._unlift import _get_codegen
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture.agreement import TOLERANCE, disagreement
from lrp_fx.capture.as_run import OverTime
from lrp_fx.capture.captured import Captured, Decisions
from lrp_fx.capture.containers import closed, closing, opened, standing_in
from lrp_fx.capture.conventions import preserved, traceable
from lrp_fx.capture.export import exports, plain, shapes_of
from lrp_fx.capture.guards import Shapes
from lrp_fx.capture.loops.capture import grown_as, restricted, rolled, time_axes
from lrp_fx.capture.offload import without_hooks
from lrp_fx.capture.packed import decided_by_lengths, unlike_rows
from lrp_fx.capture.passes import normalize as normalise
from lrp_fx.capture.passes.autocast import mark_recorded, write_casts
from lrp_fx.capture.passes.causal_masks import shorten_masks
from lrp_fx.capture.passes.conditional_norms import free_of_inputs
from lrp_fx.capture.passes.control_flow import Unrolled, drop_block_masks, holds_control, holds_transform
from lrp_fx.capture.passes.detached import settle_detached
from lrp_fx.capture.passes.functionalize import drop_unread_writes
from lrp_fx.capture.passes.rectifiers import rectifiers_to_relu
from lrp_fx.capture.passes.unpack_quantized import unpack
from lrp_fx.capture.passes.unroll_rnn import written_out
from lrp_fx.capture.passes.widen_float32 import widen_islands
from lrp_fx.capture.random_draws import drawing
from lrp_fx.capture.repeated_inputs import distinct
from lrp_fx.capture.request import Request
from lrp_fx.capture.run_effects import RunEffects
from lrp_fx.capture.signature import Call, read_call
from lrp_fx.capture.trace import Recording, functional, record
from lrp_fx.errors import CaptureError, type_and_line
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.dead_code import drop_dead
from lrp_fx.graph.lazy_module import lazy_module
from lrp_fx.graph.location import locate
from lrp_fx.graph.module_calls import settle
from lrp_fx.operators.schema import is_mutating
from lrp_fx.status import stage

ROUTES = ("auto", "export", "trace")


def prepare(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Arguments in the form that a capture needs: containers opened, keywords sorted, tensors that share no memory."""
    return distinct(model, *opened((args, dict(sorted(kwargs.items())))))


def capture(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    dynamic: bool = True,
    route: str = "auto",
    refusing: Sequence[Captured] = (),
) -> Captured:
    """Capture ``model`` as called with ``args`` and ``kwargs``.

    Either by non-strict pre-dispatch export, with dynamic shapes as far as the model allows, or by recording a run
    (``lrp_fx.capture.trace``). Meanwhile the model is in evaluation mode with caches off. Parameters and buffers are
    shared, never copied. What the model writes while it runs is undone.

    Args:
        model: the model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        dynamic: whether dimensions may be dynamic.
        route: "export", "trace", or "auto": record a run if export fails.
        refusing: captures of the same model and form of call that refuse this call. Generalised example inputs that one
            of them serves are not exported: the model would take the branch that refuses this call.

    Raises:
        CaptureError: if neither route succeeds; the message has the reasons of both.
    """
    args, kwargs = prepare(model, args, kwargs)
    effects = RunEffects(model)
    request = Request(without_hooks(model), args, kwargs, read_call(model, args, kwargs), effects, dynamic)
    return replace(_captured_by(request, route, refusing), written=effects.written)


def _captured_by(request: Request, route: str, refusing: Sequence[Captured]) -> Captured:
    """Capture by ``route``; for "auto", record a run if export fails."""
    model, call = request.model, request.call
    if route == "trace":
        return _by_trace(request)
    exported = replace(request, model=standing_in(model, request.inputs))
    programs = exports(exported, refusing, over_time=True)
    refusal = ""
    others: tuple[tuple[Captured, Call], ...] = ()
    while True:
        try:
            program, oblivious = next(programs, (None, False))
        except CaptureError:
            raise
        except OverTime as seen:
            if (captured := _over_time(request, seen)) is not None:
                return captured
            programs = exports(exported, refusing, kinds=seen.kinds)
            continue
        except Exception as error:
            refusal = type_and_line(error)
            if route == "export":
                raise _refused(model, refusal) from error
            return _by_trace(request, refusal)
        if program is None:
            break
        if holds_transform(program.graph_module):
            refusal = "the graph opens levels of vmap or derivatives"
            return _by_trace(request, refusal)
        stage("passes")
        try:
            graph_module, spec = plain(program), program.call_spec
        except CaptureError as error:
            if route == "export":
                raise
            return _by_trace(request, str(error).splitlines()[0])
        if holds_control(graph_module):
            recording = _recorded(request, _unrolled(graph_module))
            return _captured(request, recording, spec.in_spec, spec.out_spec, "control flow")
        graph_module = _finished(graph_module)
        if drawing(graph_module.graph):  # relevance, ledger and outputs would each be of other random numbers
            refusal = "it draws random numbers, which an exported graph would draw anew at every run"
            break
        if (unlike := unlike_rows(graph_module.graph)) is not None:
            refusal = f"it reads the rows of a packed sequence by their number: {locate(unlike)}"
            break
        decisions = decided_by_lengths(graph_module)
        if decisions is not None and not decisions.hold_for(call.leaves):
            refusal = "a packed sequence is shorter than its padding"
            break
        shapes = shapes_of(graph_module.graph, tuple(call.tensors), oblivious)
        captured = Captured(graph_module, call.names, spec.out_spec, shapes, request.seconds, decisions=decisions)
        reason = captured.refuses_sizes(call.leaves)
        if reason is not None:  # the model takes another branch at the size of the generalised example
            refusal = f"the exported graph does not serve this call: {reason}"
            others = (*others, *_for_its_example(model, captured, program))
            continue
        try:
            stage("comparison with the model")
            difference = disagreement(model, graph_module, *request.inputs, request.effects.undone)
            if difference <= TOLERANCE:
                return replace(captured, others=others)
            refusal = f"the exported graph disagrees with the model: outputs differ by {difference:.1%}"
        except Exception as error:  # a graph that does not run, or has outputs without values
            refusal = f"the exported graph does not run: {type(error).__name__}"
    if route == "export":
        raise _refused(model, refusal)
    return _by_trace(request, refusal)


def _over_time(request: Request, seen: OverTime) -> Captured | None:
    """A capture with loops for any number of steps; None if the model does not allow it."""
    call = request.call

    def captured_at(short: Any) -> Iterator[tuple[fx.GraphModule, Shapes, Any]]:
        args, kwargs = short
        stand_in = standing_in(request.model, short)
        shorter = replace(request, model=stand_in, args=args, kwargs=kwargs, dynamic=True)
        for program, oblivious in exports(shorter, kinds=seen.kinds):
            if holds_transform(program.graph_module) or holds_control(program.graph_module):
                return
            graph_module = _finished(plain(program))
            if drawing(graph_module.graph):
                return
            shapes = shapes_of(graph_module.graph, tuple(call.tensors), oblivious)
            yield graph_module, shapes, functools.partial(grown_as, short, program.example_inputs)

    for length in seen.lengths:
        time = time_axes(call.leaves, length)
        with contextlib.suppress(Exception):  # each means that the length is no length, or that the steps differ
            for merged in rolled(captured_at, request.inputs, time) if time else ():
                shapes = restricted(shapes_of(merged.graph_module.graph, tuple(call.tensors), True), merged)
                out_spec = merged.graph_module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
                captured = Captured(merged.graph_module, call.names, out_spec, shapes, request.seconds, over_time=True)
                stage("comparison with the model")
                if captured.refuses_sizes(call.leaves) is None and captured.agrees(lambda: request.model, call.leaves):
                    return captured
    return None


def _unrolled(graph_module: fx.GraphModule) -> Any:
    """An exported graph as a function of its flat inputs that runs higher-order operators step by step."""
    drop_block_masks(graph_module)
    return lambda *leaves: Unrolled(graph_module).run(*leaves, enable_io_processing=False)


def _for_its_example(
    model: torch.nn.Module, captured: Captured, program: torch.export.ExportedProgram
) -> Iterator[tuple[Captured, Call]]:
    """(capture, call) of the generalised example inputs of a program, if the two agree there."""
    args, kwargs = program.example_inputs  # type: ignore[misc]
    with contextlib.suppress(Exception):  # a graph that does not run is dropped
        if disagreement(model, captured.graph_module, args, kwargs) <= TOLERANCE:
            yield captured, read_call(model, args, kwargs)


def _refused(model: torch.nn.Module, refusal: str) -> CaptureError:
    return CaptureError(
        f"torch.export cannot capture {type(model).__name__}: {refusal}\n"
        "Remedy: capture='auto' records a run if export fails."
    )


def _by_trace(request: Request, refusal: str = "") -> Captured:
    """Capture by recording a run; ``refusal``: why export failed."""
    model = request.model
    in_spec = pytree.tree_structure(request.inputs)

    def run(*leaves: Any) -> Any:
        positional, keyword = closed(pytree.tree_unflatten(list(leaves), in_spec))
        return model(*positional, **keyword)

    try:
        stage("recording of a run")
        recording = _recorded(request, run)
    except CaptureError:
        raise
    except Exception as error:
        reason = type_and_line(error) + (f" (and torch.export failed: {refusal})" if refusal else "")
        if _runs(model, *request.inputs):
            raise CaptureError(
                f"{type(model).__name__} runs on these inputs, but a run cannot be recorded: {reason}\n"
                "Remedy: pad rather than nest, as nested tensors and other subclasses of tensors inside of a model are "
                "not read; if it has none, report this error."
            ) from error
        raise CaptureError(
            f"{type(model).__name__} does not run on these inputs: {reason}\n"
            "Remedy: call the model itself once with the same arguments, in evaluation mode."
        ) from error
    return _captured(request, recording, in_spec, recording.out_spec, refusal)


def _runs(model: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    try:
        with torch.no_grad(), preserved(model):
            model(*args, **kwargs)
    except Exception:  # of any kind
        return False
    return True


def _recorded(request: Request, run: Any) -> Recording:
    """``run``, the model as a function of its flat inputs, recorded."""
    model = request.model
    with request.effects.undone(), traceable(model, experts=None):
        return record(model, run, request.call.leaves, lambda: written_out(model, request.dynamic))


def _captured(
    request: Request, recording: Recording, in_spec: pytree.TreeSpec, out_spec: pytree.TreeSpec, refusal: str
) -> Captured:
    """A recorded run as a capture: a graph with the model's signature, and a separate graph of its decisions."""
    call, graph_module = request.call, recording.graph_module
    normalise.in_one_mode(graph_module.graph)
    mark_recorded(graph_module.graph)
    write_casts(graph_module)
    normalise.drop_assertions(graph_module.graph)
    normalise.drop_inert(graph_module.graph)
    drop_unread_writes(graph_module.graph)
    if any(is_mutating(n) for n in graph_module.graph.nodes):
        graph_module = _functional(graph_module, call)
        normalise.mend(graph_module.graph)
        normalise.in_one_mode(graph_module.graph)
    end: Any = graph_module.graph.output_node()
    outputs, *decisive = end.args[0]  # type: ignore[misc]
    end.args = ([n for nodes in decisive for n in nodes],)  # type: ignore[union-attr]
    decided, _ = copy_graph(graph_module.graph)
    decided.eliminate_dead_code()
    decisions = lazy_module(graph_module, decided, "Decisions")
    tensors = iter(outputs)  # type: ignore[arg-type]
    with graph_module.graph.inserting_before(end):
        end.args = ([_leaf(graph_module, i, leaf, tensors) for i, leaf in enumerate(recording.leaves)],)
    out_spec = closing(out_spec)
    graph_module.graph._codegen = _get_codegen(in_spec, out_spec)
    sizes = tuple(tuple(int(d) for d in t.shape) for t in call.tensors.values())
    reasons = {
        (n, axis): "the run was recorded at this size" for n, t in call.tensors.items() for axis in range(t.dim())
    }
    return Captured(
        _finished(graph_module), call.names, out_spec, Shapes(sizes, {}, reasons, inputs=tuple(call.tensors)),
        request.seconds, "trace", Decisions.of(decisions, call.leaves, recording.shaped), refusal,
    )  # fmt: skip


def _functional(graph_module: fx.GraphModule, call: Call) -> fx.GraphModule:
    try:
        return functional(graph_module, call.leaves)
    except Exception as error:  # assertions of PyTorch, too
        raise CaptureError(
            f"the recorded run writes in place, and PyTorch cannot write it otherwise: {type_and_line(error)}\n"
            "Remedy: in the model, write `x = x + y` for `x += y`, and torch.where or torch.cat for writes into pieces."
        ) from error


def _leaf(owner: fx.GraphModule, index: int, leaf: Any, tensors: Any) -> Any:
    """An output leaf: its node, a plain constant, or the object that the recorded run returned."""
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return leaf
    if isinstance(leaf, Tensor):
        return next(tensors)
    setattr(owner, f"_output_{index}", leaf)
    node = owner.graph.get_attr(f"_output_{index}")
    node.meta["val"] = leaf
    return node


def _finished(graph_module: fx.GraphModule) -> fx.GraphModule:
    unpack(graph_module)
    settle_detached(graph_module.graph)
    normalise.boolean_conditions(graph_module.graph)
    rectifiers_to_relu(graph_module)
    normalise.spell_out(graph_module.graph)
    normalise.whole_batch_norms(graph_module.graph)
    normalise.pools_to_means(graph_module.graph)
    normalise.split_moments(graph_module.graph)
    free_of_inputs(graph_module.graph)
    shorten_masks(graph_module.graph)
    widen_islands(graph_module.graph)
    settle(graph_module.graph)
    drop_dead(graph_module.graph)
    graph_module.recompile()
    return graph_module


def failing_node(graph_module: fx.GraphModule, leaves: tuple[Any, ...]) -> Node | None:
    """The first node of a graph that raises on flat inputs, or None."""

    class Probe(fx.Interpreter):
        at: Node | None = None

        def run_node(self, n: Node) -> Any:
            self.at = n
            return super().run_node(n)

    probe = Probe(graph_module)
    probe.extra_traceback = False
    try:
        with torch.no_grad():
            probe.run(*leaves, enable_io_processing=False)
    except Exception:
        return probe.at
    return None
