"""Stage 6, lower: forward pass, relevance backward pass and target selection as one graph, to compile or save."""

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
from lrp_fx.explain.model_notes import context_of
from lrp_fx.explain.target import check_won
from lrp_fx.explain.target_types import normal
from lrp_fx.graph.copies import copy_graph
from lrp_fx.lowering import disk_cache
from lrp_fx.lowering.accepts import Accepts, ran
from lrp_fx.lowering.artefacts import save as ship
from lrp_fx.lowering.blocks.compile import ALIKE, once_per_block
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

_POSITIONS = 64  #: upper bound on the positional inputs of a model


@dataclass(frozen=True)
class Lowered:
    """A relevance graph: one functional graph of plain tensor operators, without autograd.

    Attributes:
        graph_module: (tensor inputs, target inputs) -> {"target": (B,), "relevance": {input: ...}, "latents": {path:
            ...}, "output": [leaves]}; "output" is empty unless ``outputs``. Parameters are shared with the model.
        inputs: names of the tensor inputs in order, target inputs last.
        sweeper: the tapped graph it was lowered from.
        spec: the kind of target.
        guards: shape guards.
        target: the target it was lowered with, and the default of every call.
        condition: the condition compiled into it.
        outputs: whether it also returns the model's outputs.
        example: the example inputs.
        read: flattens the arguments of a call.
        runner: the graph module, or its compiled form.
        show: tries to prove that the capture also holds for one sample; costs one more capture.
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
            InputError: for sizes outside the guards, and for values that take other branches than the recorded run.
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
                "the model was recorded, and these inputs take other branches than the example inputs. "
                "Lower it again with these inputs, or use explain()."
            )
        with ran():
            return self.explain_call(call, target)

    explain = __call__

    def __repr__(self) -> str:
        return f"Lowered({self.sweeper.captured.shapes}; target {self.spec.kind}; rules {self.about['rules']!r})"

    def __copy__(self) -> Lowered:
        return replace(self)

    def __reduce__(self) -> Any:
        raise LoweringError(
            "a lowered graph cannot be pickled or deep-copied: it belongs to the converted model that it was lowered "
            "from. Remedy: save() it and lrp_fx.load() the file (a loaded graph can be pickled), or lower() a copy of "
            "the converted model."
        )

    @functools.cached_property
    def accepts(self) -> Accepts:
        """Names, precisions and sizes of the inputs."""
        return Accepts.of(self.example, self.guards)

    def _in_order(self, call: Call) -> Call:
        """Reorder the inputs of a call as in the example: keyword arguments come in any order."""
        leaves = dict(zip(call.names, call.leaves, strict=True))
        if set(leaves) != set(self.example.names):
            raise InputError(
                f"this graph was lowered for the inputs {', '.join(self.example.names)}, not "
                f"{', '.join(leaves) or 'none'}"
            )
        return Call(self.example.names, tuple(leaves[n] for n in self.example.names), call.key)

    def serves(self, call: Call, target: Target) -> bool:
        """Whether the graph can explain this call for this target."""
        if self.spec.kind == "callable" and target is not self.target:
            return False
        other = target_spec(target, self.sweeper.reading)
        same = (other.kind, other.names) == (self.spec.kind, self.spec.names)
        return same and self.guards.mismatch(list(call.tensors.values())) is None

    def explain_call(self, call: Call, target: Target = None) -> Attribution:
        """Explain one flattened call, as :meth:`__call__` does, without a check of its sizes."""
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
        """Metadata of a saved graph: names of inputs and (flattened) outputs, kind of target, rule set, guards."""
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
        """Names of the model's positional inputs."""
        names = self.read((None,) * _POSITIONS, {}).names
        return [name for name in names if not name.startswith("args[")]

    def _returned(self) -> tuple[list[str], list[str]]:
        end: Any = self.graph_module.graph.output_node()
        returned: Any = end.args[0]
        return list(returned["relevance"]), list(returned["latents"])

    def save(self, path: str | Path, weights: str = "inside", model: torch.nn.Module | None = None) -> None:
        """Save the graph for :func:`lrp_fx.load`; with weights inside, ``torch.export.load`` reads it, too.

        Args:
            path: the file to write.
            weights: "inside", or "reference": weights of ``model`` are left out, and looked up by name at loading.
            model: the explained model.

        Raises:
            ValueError: for another value of ``weights``, and for "reference" without ``model``.
            InputError: for offloaded weights.
        """
        if weights not in ("inside", "reference") or (weights == "reference" and model is None):
            raise ValueError(f'weights={weights!r}: choose "inside", or "reference" with model=')
        self._warn_of_branches()
        self._try()
        ship.save(brought_in(self.graph_module), path, self.about, model if weights == "reference" else None)

    def package(self, path: str | Path) -> Path:
        """Compile the graph ahead of time (AOTInductor): the package runs from C++, or from Python with torch alone.

        ``torch._inductor.aoti_load_package(path)(*tensors)`` takes :attr:`inputs` in order.
        """
        self._warn_of_branches()
        self._try()
        return ship.package(brought_in(self.graph_module), path, self.about)

    def to_onnx(self, path: str | Path) -> None:
        """Write an ONNX model, fused attention and grouped products decomposed; its outputs are "explained", then
        "relevance.INPUT" and "latents.PATH".

        Raises:
            MissingExtraError: without the packages of the extra "onnx".
            InputError: for a graph lowered with ``outputs=True``.
        """
        if self.outputs:
            raise InputError("an ONNX model returns relevance alone: lower it without outputs=True")
        self._warn_of_branches()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            spelled = lower(self.sweeper, self.read, self.example, self.target, condition=self.condition)
        spelled._try()
        ship.to_onnx(brought_in(spelled.graph_module), path, self.about)

    def _try(self) -> None:
        """Compare the graph with the eager sweep on its example, before a file is written.

        Raises:
            LoweringError: naming the tensors that differ.
        """
        self.show(self.sweeper.captured, self.example)
        if not self._holds():
            warnings.warn(
                "this graph is written without a comparison with the model: its example inputs have no values. "
                "Give save(), package() or to_onnx() inputs.",
                stacklevel=3,
            )

    def _holds(self) -> bool:
        """Whether the uncompiled graph agrees with the eager sweep on its example; False for an example without values.

        Raises:
            LoweringError: naming the tensors that differ.
        """
        plain, calls = replace(self, runner=self.graph_module), examples(self.example, self.guards)
        # at a conditioned latent, the sweep returns relevance before its mask, the graph relevance after it
        cut = [f"the latent['{path}']" for path in self.condition]
        return agree(plain.explain_call, self._eager, calls, _allowed(self.sweeper), self.outputs, cut)

    def _eager(self, call: Call) -> Attribution:
        return self.sweeper.explain_under(call, self.target, [self.condition])[0]

    def _warn_of_branches(self) -> None:
        decisions = self.sweeper.captured.decisions
        if decisions is not None and decisions.values:
            warnings.warn(
                "this model was recorded: its files take the branches of the example for all inputs",
                stacklevel=3,
            )

    def compile(self, mode: str | None = None, *, per_block: bool | None = None, **options: Any) -> Lowered:
        """The same graph under ``torch.compile`` (full graph, dynamic shapes); compilation runs at the first call.

        Packed weights of a quantization library are unpacked once, for all calls; so they are in files.

        Args:
            mode: as in ``torch.compile``.
            per_block: whether to compile each kind of repeated block once, so that compile time does not grow with
                depth. None: where at least four blocks are alike, unless another ``backend`` compiles.
            **options: as in ``torch.compile``; ``backend`` or ``options`` replace the options of lrp_fx.
        """
        free = any(isinstance(d, str) for dims in self.guards.shapes.dims for d in dims)
        graph_module = brought_in(self.graph_module)
        if per_block or (per_block is None and "backend" not in options):
            graph_module = once_per_block(graph_module, 2 if per_block else ALIKE)
        if options.keys() & {"backend", "options"}:
            options["mode"] = mode
        else:  # torch.compile takes a mode or options, not both
            options["options"] = inductor_options(graph_module, mode)
        compiled = torch.compile(graph_module, fullgraph=True, dynamic=free or None, **options)
        return replace(self, runner=compiled)

    def _attribution(self, call: Call, results: dict[str, Any], target: Target) -> Attribution:
        sweeper = self.sweeper

        check_unchanged = sweeper.changes(call.leaves)

        @functools.cache
        def eager() -> Attribution:
            check_unchanged("ledger")
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
    """Lower a tapped graph, or read it from the disk cache (``LRP_FX_CACHE``, :mod:`lrp_fx.lowering.disk_cache`).

    Args:
        sweeper: the tapped graph.
        read: flattens the arguments of a call.
        call: example inputs; they fix the sizes that the capture does not leave free.
        target: its kind is fixed in the graph, its value is an input.
        condition: part of the graph, if any.
        outputs: also return the model's outputs; without them the head runs at explained positions only.
        dynamic: dynamic shapes where capture and tracing allow them; otherwise nodes that depend on sizes alone are
            folded.

    Raises:
        InputError: when no input can carry relevance.
        TargetError: when the target depends on no input, or its choice reads tensor values.
    """
    sweeper.inputs.check()
    make = functools.partial(_lower, sweeper, read, call, target, {} if condition is None else condition, outputs)
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
    """The first cached graph that agrees with the eager sweep on the example; None for a cache miss."""
    for graph in disk_cache.cached(entry, sweeper):
        with contextlib.suppress(Exception):  # a graph that does not run is a cache miss
            lowered = folded(graph.graph_module, graph.guards)
            if lowered._holds() or _without_values(lowered.example):
                graph.file.touch()
                return lowered
    return None


def _without_values(call: Call) -> bool:
    """Whether the call has shapes alone (meta tensors)."""
    return any(tensor.is_meta for tensor in call.tensors.values())


def _allowed(sweeper: Sweeper) -> float:
    """Relative tolerance for relevance: ten times that of outputs, as the backward pass adds rounding errors."""
    return min(0.1, 10 * tolerance(sweeper.captured.graph_module))
