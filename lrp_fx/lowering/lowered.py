"""Stage 6, lower: forward, rule backward and choice of the target as ONE functional graph, to compile and to ship."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.attention
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lrp_fx.cache.folder import Entry
from lrp_fx.cache.store import tolerance
from lrp_fx.capture import Call, Captured
from lrp_fx.capture.offload import brought_in
from lrp_fx.errors import InputError, LoweringError, TargetError
from lrp_fx.explain import Sweeper, Target
from lrp_fx.explain.conditions import Condition
from lrp_fx.explain.held import context_of
from lrp_fx.explain.target import check_won
from lrp_fx.explain.target_types import normal
from lrp_fx.graph.copies import copy_graph
from lrp_fx.lowering import disk_cache
from lrp_fx.lowering.accepts import Accepts, ran
from lrp_fx.lowering.artefacts import save as ship
from lrp_fx.lowering.blocks.compile import once_per_block
from lrp_fx.lowering.dynamic_shapes import ShapeGuards, dynamic_if_possible, fake_inputs
from lrp_fx.lowering.finalize import assembled, finished
from lrp_fx.lowering.inductor import inductor_options
from lrp_fx.lowering.joint_graph import (
    attributes_of,
    check_finite,
    condition_masks,
    functional_graph,
    inner_tensors,
    mask_name,
    relevance_function,
    with_target,
)
from lrp_fx.lowering.partition import min_cut
from lrp_fx.lowering.targets.spec import TargetSpec, distinct, target_spec
from lrp_fx.lowering.trial import agree, examples
from lrp_fx.results import Attribution, Later

_POSITIONS = 64  #: more inputs than any model takes by position


@dataclass(frozen=True)
class Lowered:
    """A relevance graph: one functional graph of plain tensor operators, without autograd.

    Attributes:
        graph_module: (tensor inputs, target inputs) -> {"target": (B,), "relevance": {input: ...}, "latents": {path:
            ...}, "output": [leaves]}, the outputs only where they were asked for. Parameters are shared with the model.
        inputs: names of its tensor inputs, in order, those of the target last.
        sweeper: what it was lowered from.
        spec: the kind of target it takes.
        guards: the sizes it serves.
        target: the target it was lowered with, used where a call gives none.
        condition: the condition that is part of it.
        outputs: whether the model's outputs are among what it returns.
        example: the call it was lowered with.
        read: flattens a call.
        runner: what runs it: the graph module, or a compiled form of it.
        show: lets the capture serve the first sample of a call, if it can be shown to; costs a capture, once.
    """

    graph_module: fx.GraphModule
    inputs: tuple[str, ...]
    sweeper: Sweeper
    spec: TargetSpec
    guards: ShapeGuards
    target: Target
    condition: Condition
    outputs: bool
    example: Call = field(repr=False)
    read: Callable[[tuple[Any, ...], dict[str, Any]], Call] = field(repr=False)
    runner: Callable[..., Any]
    show: Callable[[Captured, Call], None] = field(default=lambda captured, call: None, repr=False)

    def __call__(self, *args: Any, target: Target = None, **kwargs: Any) -> Attribution:
        """Explain one call of the model; ``target`` is of the kind the graph was lowered with.

        Raises:
            InputError: for sizes that the graph does not serve, and values that lead a recorded run elsewhere.
            TargetError: for a target of another kind, or out of range.
            NumericalError: when the target or a relevance is not finite.
        """
        call = self._in_order(self.read(args, kwargs))
        if self.sweeper.captured.shapes.is_one_sample(list(call.tensors.values())):
            self.show(self.sweeper.captured, call)
        self.accepts.tensors(call)
        if (reason := self.sweeper.captured.refuses_sizes(call.leaves)) is not None:
            raise InputError(f"this graph was lowered for other sizes: {reason}. Lower it again with these inputs.")
        if not self.sweeper.captured.decides(call.leaves):
            raise InputError(
                "the model was recorded, and on these inputs it takes other branches than on those it was lowered on. "
                "Lower it again with these inputs, or use explain()."
            )
        with ran():
            return self.explain_call(call, target)

    explain = __call__

    def __copy__(self) -> Lowered:
        return replace(self)

    def __reduce__(self) -> Any:
        raise LoweringError(
            "a lowered graph is neither pickled nor copied with its tensors: it belongs to the converted model that it "
            "was lowered from. Remedy: save() it and lrp_fx.load() the file (what load returns can be pickled), or "
            "lower() a copy of the converted model."
        )

    @functools.cached_property
    def accepts(self) -> Accepts:
        """The inputs and sizes it takes."""
        return Accepts.of(self.example, self.guards)

    def _in_order(self, call: Call) -> Call:
        """The call with its inputs in the order of the example's: some may be by position here and by name there."""
        leaves = dict(zip(call.names, call.leaves, strict=True))
        if set(leaves) != set(self.example.names):
            raise InputError(
                f"this graph was lowered for the inputs {', '.join(self.example.names)}, not "
                f"{', '.join(leaves) or 'none'}"
            )
        return Call(self.example.names, tuple(leaves[n] for n in self.example.names), call.key)

    def serves(self, call: Call, target: Target) -> bool:
        """Whether it can explain this call for this target."""
        if self.spec.kind == "callable" and target is not self.target:
            return False
        other = target_spec(target, self.sweeper.reading)
        same = (other.kind, other.names) == (self.spec.kind, self.spec.names)
        return same and self.guards.mismatch(list(call.tensors.values())) is None

    def explain_call(self, call: Call, target: Target = None) -> Attribution:
        """Explain one flattened call of sizes that it serves, as :meth:`__call__` does."""
        tensors = list(call.tensors.values())
        chosen = self.target if target is None else target
        if self.spec.kind == "callable" and chosen is not self.target:
            raise TargetError("this graph was lowered for one callable target: lower it again for another one")
        extra = self.spec.inputs(chosen, self.guards.limits(tensors), tensors[0].device, self.sweeper.reading)
        with torch.no_grad():
            results = self.runner(*tensors, *extra)
        check_finite([check_won(normal(chosen), results["target"]), *results["relevance"].values()])
        return self._attribution(call, results, chosen)

    @property
    def about(self) -> dict[str, Any]:
        """What a file of it has to say: names of inputs and (flattened) outputs, kind of target, rule set."""
        relevance, latents = self._returned()
        outputs = ["explained", *(f"relevance.{n}" for n in relevance), *(f"latents.{n}" for n in latents)]
        return {
            "inputs": list(self.inputs),
            "outputs": outputs,
            "target": self.spec.kind,
            "rules": self.sweeper.rewritten.plan.ruleset.name,
            "notes": [vars(note) for note in context_of(self.sweeper.rewritten.plan.facts).notes],
            "positions": self._positions(),
            "reading": self.sweeper.reading.plain(),
            **self.accepts.plain(),
        }

    def _positions(self) -> list[str]:
        """Names of what the model takes by position, as they are told when a call is read."""
        names = self.read((None,) * _POSITIONS, {}).names
        return [name for name in names if not name.startswith("args[")]

    def _returned(self) -> tuple[list[str], list[str]]:
        end: Any = self.graph_module.graph.output_node()
        returned: Any = end.args[0]
        return list(returned["relevance"]), list(returned["latents"])

    def save(self, path: str | Path, weights: str = "inside", model: torch.nn.Module | None = None) -> None:
        """Save it; :func:`lrp_fx.load` reads it, and so does ``torch.export.load`` if its weights are inside.

        Args:
            path: the file to write.
            weights: "inside", or "reference": those of ``model`` are left out, and looked up by name when it is loaded.
            model: the model that it explains.
        """
        if weights not in ("inside", "reference") or (weights == "reference" and model is None):
            raise ValueError(f'weights={weights!r}: choose "inside", or "reference" and the model they are of')
        self._warn_of_branches()
        self._try()
        ship.save(brought_in(self.graph_module), path, self.about, model if weights == "reference" else None)

    def package(self, path: str | Path) -> Path:
        """Compile it ahead of time (AOTInductor): the package runs from C++, or from Python with torch alone.

        ``torch._inductor.aoti_load_package(path)(*tensors)`` takes :attr:`inputs` in order.
        """
        self._warn_of_branches()
        self._try()
        return ship.package(brought_in(self.graph_module), path, self.about)

    def to_onnx(self, path: str | Path) -> None:
        """Write it as an ONNX model, attention and experts spelled out; its outputs are "explained", then
        "relevance.INPUT" and "latents.PATH".

        Raises:
            MissingExtraError: without the packages of the extra "onnx".
        """
        if self.outputs:
            raise InputError("an ONNX model returns relevance alone: lower it without outputs=True")
        self._warn_of_branches()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            spelled = lower(self.sweeper, self.read, self.example, self.target, condition=self.condition)
        spelled._try()
        ship.to_onnx(brought_in(spelled.graph_module), path, self.about)

    def _try(self) -> None:
        """Run it once beside the eager sweep, before a file of it is written.

        Raises:
            LoweringError: naming what differs.
        """
        self.show(self.sweeper.captured, self.example)
        if not self._holds():
            warnings.warn(
                "this graph was not compared with the model before it is written: its example has no values that the "
                "model runs on. Give save(), package() or to_onnx() inputs.",
                stacklevel=3,
            )

    def _holds(self) -> bool:
        """Whether the graph, run without compiler, explains its example as the eager sweep does; not without values.

        Raises:
            LoweringError: naming what differs.
        """
        plain, calls = replace(self, runner=self.graph_module), examples(self.example, self.guards)
        # where a condition cuts, the sweep shows what arrives and the graph what goes on
        cut = [f"the latent['{path}']" for path in self.condition]
        return agree(plain.explain_call, self._eager, calls, _allowed(self.sweeper), self.outputs, cut)

    def _eager(self, call: Call) -> Attribution:
        return self.sweeper.explain_under(call, self.target, [self.condition])[0]

    def _warn_of_branches(self) -> None:
        decisions = self.sweeper.captured.decisions
        if decisions is not None and decisions.values:
            warnings.warn(
                "this model was recorded: a file of it takes the branches that its example took, whatever its inputs",
                stacklevel=3,
            )

    def compile(self, mode: str | None = None, *, per_block: bool = False, **options: Any) -> Lowered:
        """The same graph, run by ``torch.compile`` (as one graph, sizes free): compiled at its first call.

        Weights that a library keeps packed are unpacked once, for all calls; the same goes for files.

        Args:
            mode: as in ``torch.compile``.
            per_block: compile each kind of repeated block once, so that what it costs does not grow with depth.
            **options: as in ``torch.compile``; with a ``backend`` or ``options`` of your own, none of ours are given.
        """
        free = any(isinstance(d, str) for dims in self.guards.shapes.dims for d in dims)
        graph_module = brought_in(self.graph_module)
        if per_block:
            graph_module = once_per_block(graph_module)
        if options.keys() & {"backend", "options"}:
            options["mode"] = mode
        else:  # torch.compile takes a mode or options, not both
            options["options"] = inductor_options(graph_module, mode)
        compiled = torch.compile(graph_module, fullgraph=True, dynamic=free or None, **options)
        return replace(self, runner=compiled)

    def _attribution(self, call: Call, results: dict[str, Any], target: Target) -> Attribution:
        sweeper = self.sweeper

        @functools.cache
        def eager() -> Attribution:
            return sweeper.explain_under(call, target, [self.condition])[0]

        output: Any = Later(lambda: eager().output)
        if results["output"]:
            output = pytree.tree_unflatten(results["output"], sweeper.captured.out_spec)
        return Attribution(
            relevance=results["relevance"],
            latents=results["latents"],
            target=results["target"],
            ruleset=sweeper.rewritten.plan.ruleset.name,
            context=context_of(sweeper.rewritten.plan.facts),
            inputs={name: tensor.detach() for name, tensor in call.tensors.items()},
            _output=output,
            _sources=Later(lambda: eager()._sources),
            _account=lambda weights: eager()._account(weights),
        )


def lower(
    sweeper: Sweeper,
    read: Callable[[tuple[Any, ...], dict[str, Any]], Call],
    call: Call,
    target: Target,
    *,
    condition: Condition | None = None,
    outputs: bool = False,
    dynamic: bool = True,
) -> Lowered:
    """Lower a tapped graph, or take what an earlier process left in ``LRP_FX_CACHE`` (``lrp_fx.lowering.disk_cache``).

    Args:
        sweeper: the tapped graph.
        read: flattens a call.
        call: an example, for what its capture does not leave free.
        target: its kind is fixed in the graph, its value is an input.
        condition: part of the graph, if any.
        outputs: also return the model's outputs; without them the head runs at explained positions only.
        dynamic: leave sizes free where the capture does, and tracing can; otherwise everything that depends on sizes
            alone is folded.

    Raises:
        InputError: when no input can carry relevance.
        TargetError: when the target does not depend on any input, or reads values.
    """
    sweeper.inputs.check()
    make = functools.partial(_lower, sweeper, read, call, target, condition or {}, outputs)
    return dynamic_if_possible(make, list(call.tensors.values())) if dynamic else make(False)


def _lower(
    sweeper: Sweeper,
    read: Callable[[tuple[Any, ...], dict[str, Any]], Call],
    call: Call,
    target: Target,
    condition: Condition,
    outputs: bool,
    dynamic: bool,
) -> Lowered:
    captured, spec = sweeper.captured, target_spec(target, sweeper.reading)
    fakes = fake_inputs(call.leaves, call.names, captured.shapes, dynamic)
    names = (*(n for n, v in zip(call.names, call.leaves, strict=True) if isinstance(v, Tensor)), *spec.names)

    def folded(graph_module: fx.GraphModule, guards: ShapeGuards) -> Lowered:
        module = finished(graph_module)
        return Lowered(module, names, sweeper, spec, guards, target, condition, outputs, call, read, module)

    entry = disk_cache.entry_of(sweeper, spec, fakes, condition, outputs, dynamic)
    if entry is not None and (cached := _from_cache(entry, folded, sweeper)) is not None:
        return cached
    targeted = with_target(sweeper, spec, call.names, fakes, outputs)
    masks = condition_masks(sweeper, condition, targeted.graph_module)
    attributes = attributes_of(targeted.graph_module) | attributes_of(captured.graph_module)
    attributes |= {mask_name(path): mask for path, mask in masks.items()}
    run = relevance_function(sweeper, targeted, masks)
    traced, structure = min_cut(*functional_graph(run, attributes, fakes.leaves, targeted.inputs, fakes))
    graph_module = assembled(traced, structure, inner_tensors(attributes), distinct(names))
    guards = ShapeGuards.of(captured.shapes, fakes, targeted.sizes)
    if entry is None or guards.mismatch(list(call.tensors.values())) is not None:
        return folded(graph_module, guards)
    copied = fx.GraphModule(graph_module, copy_graph(graph_module.graph)[0], class_name="RelevanceGraph")
    lowered = folded(copied, guards)
    if lowered._holds() or _without_values(call):
        disk_cache.write(entry, graph_module, guards, sweeper)
    return lowered


def _from_cache(
    entry: Entry, folded: Callable[[fx.GraphModule, ShapeGuards], Lowered], sweeper: Sweeper
) -> Lowered | None:
    """A cached graph that serves the call at hand, and explains it as the eager sweep does."""
    for graph in disk_cache.cached(entry, sweeper):
        with contextlib.suppress(Exception):  # what cannot be run is as if it were not there
            lowered = folded(graph.graph_module, graph.guards)
            if lowered._holds() or _without_values(lowered.example):
                graph.file.touch()
                return lowered
    return None


def _without_values(call: Call) -> bool:
    """Whether there is nothing to compare."""
    return any(tensor.is_meta for tensor in call.tensors.values())


def _allowed(sweeper: Sweeper) -> float:
    """How much relevance may differ: what outputs may, ten times, as rounding adds up on the way back."""
    return min(0.1, 10 * tolerance(sweeper.captured.graph_module))
