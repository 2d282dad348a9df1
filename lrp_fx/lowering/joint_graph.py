"""Forward pass, relevance backward pass and target selection, traced into one functional graph without autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lrp_fx.analysis import Source
from lrp_fx.capture.passes.functionalize import functionalise
from lrp_fx.errors import NumericalError, TargetError, UnknownOpError
from lrp_fx.explain import Sweeper
from lrp_fx.explain.conditions import Condition, condition_mask
from lrp_fx.explain.sweep import sweep
from lrp_fx.explain.target import beside
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.copies import copy_graph, splice
from lrp_fx.graph.values import Values
from lrp_fx.lowering.dynamic_shapes import Fakes
from lrp_fx.lowering.origins import Origins
from lrp_fx.lowering.targets.spec import TargetSpec, distinct
from lrp_fx.passes.collect_early import collect_early, per_source
from lrp_fx.passes.hoist_slices import behind_selection, sizes_from_inputs
from lrp_fx.passes.packed_sequences import spell_packed
from lrp_fx.passes.select_logits import select_logits

Attributes = Mapping[str, Tensor]


_RECORDED = "recorded_sizes"  #: meta key: shapes of data-dependent results in the recorded run


class Lifted(fx.Interpreter):
    """Runs a graph with its parameters and constants as arguments, and stores every value.

    A result of data-dependent shape gets its shape of the recorded run, if there was one: calls are checked against the
    decisions of that run.
    """

    def __init__(self, graph_module: fx.GraphModule, attributes: Attributes) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.attributes = attributes
        self.extra_traceback = False

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The attribute from the arguments, or from the module where it is no tensor."""
        return self.attributes[target] if target in self.attributes else super().get_attr(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        """The node's value, in its recorded shape if it has one."""
        result = super().run_node(n)
        return _at_sizes(result, n.meta[_RECORDED]) if _RECORDED in n.meta else result


class _Noting(Lifted):
    """Notes which node is being computed, for :class:`Origins`."""

    def __init__(self, graph_module: fx.GraphModule, attributes: Attributes, origins: Origins) -> None:
        super().__init__(graph_module, attributes)
        self.origins = origins

    def run_node(self, n: Node) -> Any:
        """The node's value."""
        if n.op != "call_function":
            return super().run_node(n)
        self.origins.enter(self.origins.of(n, "forward"))
        result = super().run_node(n)
        self.origins.follow(n, result)
        return result


def _note_sizes(graph: fx.Graph) -> None:
    """Note the shapes of data-dependent results in a recorded run."""
    for node in graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            sizes = [tuple(t.shape) for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
            if sizes and all(isinstance(n, int) for shape in sizes for n in shape):
                node.meta[_RECORDED] = sizes


def _at_sizes(result: Any, sizes: Sequence[tuple[int, ...]]) -> Any:
    leaves, structure = pytree.tree_flatten(result)
    return pytree.tree_unflatten([t.view(s) for t, s in zip(leaves, sizes, strict=True)], structure)


def attributes_of(graph_module: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor that a graph reads from its module, by path."""
    tensors: dict[str, Tensor] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(graph_module, node)
            if isinstance(value, Tensor):
                tensors[str(node.target)] = value
    return tensors


@dataclass(frozen=True)
class Targeted:
    """A tapped graph that selects its target.

    Attributes:
        graph_module: (flat inputs, target inputs) -> (output leaves, tap points of sources, latents, target).
        inputs: fake target inputs.
        sizes: shape of the logits that the target indexes.
        counts: number of tap points of each source.
        depths: number of dimensions of the ids that look up each source; None for a source without ids.
    """

    graph_module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    sizes: tuple[Any, ...]
    counts: tuple[int, ...]
    depths: tuple[int | None, ...]

    def per_source(self, collected: Sequence[Tensor]) -> list[Tensor]:
        """Relevance of each source, from relevance at its tap points."""
        return per_source(collected, self.counts, self.depths)


def inner_tensors(attributes: Attributes) -> dict[str, Tensor]:
    """The plain tensors inside attributes: a quantized weight has several (data, scales)."""
    tensors: dict[str, Tensor] = {}
    for name, value in attributes.items():
        if is_traceable_wrapper_subclass(value):
            inner = value.__tensor_flatten__()[0]
            tensors |= inner_tensors({f"{name}.{part}": getattr(value, part) for part in inner})
        else:
            tensors[name] = value
    return tensors


def _rebuilt(name: str, like: Tensor, inner: Attributes) -> Tensor:
    if not is_traceable_wrapper_subclass(like):
        return inner[name]
    names, context = like.__tensor_flatten__()
    tensors = {part: _rebuilt(f"{name}.{part}", getattr(like, part), inner) for part in names}
    return type(like).__tensor_unflatten__(tensors, context, like.shape, like.stride())


def with_target(sweeper: Sweeper, spec: TargetSpec, names: Sequence[str], fakes: Fakes, report: bool) -> Targeted:
    """Insert the choice of the target into the tapped graph, and hoist it as far as possible.

    Args:
        report: also return the model's outputs.

    Raises:
        TargetError: when the choice reads tensor values.
    """
    graph, _ = copy_graph(sweeper.tapped.graph)
    graph_module = fx.GraphModule(sweeper.tapped, graph, class_name="TargetedGraph")
    _note_sizes(graph)
    spell_packed(graph_module)
    attributes = {k: fakes.constant(v) for k, v in attributes_of(graph_module).items()}
    outputs, _, _ = _propagate(graph_module, attributes, fakes.leaves, fakes)
    flat = pytree.tree_leaves(outputs)
    logits = sweeper.reading.logits(sweeper.output(flat))
    targets = _target_inputs(spec, logits, fakes)
    readable = beside(dict(zip(names, fakes.leaves, strict=True)))
    choice = _traced_choice(sweeper, spec, flat, readable, targets, fakes)
    end: Any = graph.output_node()
    (leaves, taps, latents) = end.args[0]
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    with graph.inserting_after(placeholders[-1]):
        unused = distinct(spec.names, [str(n.target) for n in placeholders])
        new = [graph.placeholder(name) for name in reversed(unused)][::-1]
    for node, value in zip(new, targets, strict=True):
        node.meta["val"] = value
    feed = [n for n, v in zip(pytree.tree_leaves(leaves), flat, strict=True) if isinstance(v, Tensor)]
    feed += [placeholders[names.index(name)] for name in readable]
    result, _ = splice(graph_module, choice, [*feed, *new], end)
    (explained,) = pytree.tree_leaves(result)
    end.args = ((leaves if report else [], taps, latents, explained),)
    sizes_from_inputs(graph)
    plan = sweeper.rewritten.plan
    ops = plan.facts.ops
    behind_selection(graph, ops, pytree.tree_leaves(leaves) if report else ())
    select_logits(graph, ops)
    depths = tuple(_rows_before_features(s) for s in plan.sources)
    if plan.feeds_zeros:  # a zero can have relevance, which is then not value times cotangent
        depths = (None,) * len(depths)
    places = collect_early(graph, ops, taps, depths, set(latents))
    (leaves, _, latents, explained) = end.args[0]
    end.args = ((leaves, list(itertools.chain(*places)), latents, explained),)
    graph.eliminate_dead_code()
    graph.lint()
    graph_module.recompile()
    return Targeted(graph_module, targets, tuple(logits.shape), tuple(map(len, places)), depths)


def _target_inputs(spec: TargetSpec, logits: Tensor, fakes: Fakes) -> tuple[Tensor, ...]:
    """Fake target inputs: (B,) indices, or (B, n) for many targets."""
    if spec.kind in ("many", "contrasts"):
        batch = logits.shape[0] if logits.dim() else 1
        return tuple(fakes.indices(name, batch, logits.device) for name in spec.names)
    with fakes.mode:
        return tuple(torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device) for _ in spec.names)


def _traced_choice(
    sweeper: Sweeper,
    spec: TargetSpec,
    flat: Sequence[Any],
    readable: dict[str, Tensor],
    targets: Sequence[Tensor],
    fakes: Fakes,
) -> fx.GraphModule:
    """The choice of the target as a graph: (output tensors, readable inputs, target inputs) -> explained values.

    Raises:
        TargetError: when it reads tensor values.
    """

    def choose(values: list[Tensor], inputs: dict[str, Tensor], indices: list[Tensor]) -> Tensor:
        feed = iter(values)
        leaves = [next(feed) if isinstance(v, Tensor) else v for v in flat]
        return spec.choose(sweeper.reading, sweeper.output(leaves), inputs, *indices)

    try:
        with fakes.mode, enable_python_dispatcher():
            tensors = [v for v in flat if isinstance(v, Tensor)]
            return make_fx(choose, pre_dispatch=True)(tensors, readable, list(targets))
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(
            f"the target reads tensor values and cannot be part of a graph ({str(error).splitlines()[0]}): choose with "
            "tensor operations alone, or use explain()"
        ) from error


def _rows_before_features(source: Source) -> int | None:
    """Number of dimensions of the ids that look up a source; None without ids, or without a feature dimension."""
    plain = source.picks and not source.dim and source.depth < source.node.meta["val"].dim()
    return source.depth if plain else None


class _Propagator(Lifted):
    def run_node(self, n: Node) -> Any:
        n.meta["val"] = result = super().run_node(n)
        return result


def _propagate(graph_module: fx.GraphModule, attributes: Attributes, inputs: Sequence[Any], fakes: Fakes) -> Any:
    """Run a graph on fake inputs, store every value as ``meta["val"]``, and return the outputs."""
    environment = fakes.mode.shape_env
    assert environment is not None
    fresh = environment.ignore_fresh_unbacked_symbols()  # data-dependent sizes, such as an expert's number of tokens
    with fakes.mode, torch.no_grad(), enable_python_dispatcher(), fresh:
        return _Propagator(graph_module, attributes).run(*inputs, enable_io_processing=False)


def relevance_function(
    sweeper: Sweeper, targeted: Targeted, masks: Mapping[str, Tensor]
) -> Callable[..., dict[str, Any]]:
    """The function to trace: (attributes, flat inputs, target inputs, seed) -> results of a lowered graph.

    The seed of the backward sweep is the scalar 1.
    """
    plan, captured = sweeper.rewritten.plan, sweeper.captured

    def run(
        attributes: dict[str, Tensor], leaves: Sequence[Any], targets: Sequence[Tensor], seed: Tensor
    ) -> dict[str, Any]:
        origins = Origins(plan)
        tapped = _Noting(targeted.graph_module, attributes, origins)
        outputs, sources, latents, explained = tapped.run(*leaves, *targets, enable_io_processing=False)
        origins.enter(None)
        lifted = {path: attributes[mask_name(path)] for path in masks}
        start = seed.to(explained.dtype).expand_as(explained)
        collected = sweep(sweeper.points(sources, latents), explained, seed=start, masks=lifted)
        origins.enter(None)
        values = Values(dict(zip(captured.placeholders, leaves, strict=True)), attributes.__getitem__)
        relevance = sweeper.inputs.per_input(plan.facts.sources, targeted.per_source(collected.sources), values)
        return {
            "target": explained.detach(),
            "relevance": relevance,
            "latents": collected.latents,
            "output": [v.detach() for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor)],
        }

    return run


def mask_name(path: str) -> str:
    """Attribute name of the condition mask at ``path``."""
    return f"_condition_{path.replace('.', '_')}"


def condition_masks(sweeper: Sweeper, condition: Condition, targeted: fx.GraphModule) -> dict[str, Tensor]:
    """Module path -> mask of the condition there; masks of features broadcast to the module's output."""
    end: Any = targeted.graph.output_node()
    latents = dict(zip(sweeper.latents, end.args[0][2], strict=True))
    masks = {}
    for path, features in condition.items():
        like = latents[path].meta["val"]
        if isinstance(features, Tensor) and (features.is_floating_point() or features.dtype is torch.bool):
            masks[path] = features.to(like.dtype)
        else:
            axis = 1 if like.dim() > 3 else like.dim() - 1
            sizes = [int(n) if i == axis else 1 for i, n in enumerate(like.shape)]
            masks[path] = condition_mask(path, torch.empty(sizes, dtype=like.dtype, device=like.device), features)
    return masks


def functional_graph(
    run: Callable[..., Any], attributes: Attributes, leaves: Sequence[Any], targets: Sequence[Tensor], fakes: Fakes
) -> tuple[fx.GraphModule, Any]:
    """Trace ``run`` into one functional graph; returns it with its outputs, in their structure, as nodes.

    Placeholders are the inner tensors of the attributes, the tensors among ``leaves``, the target inputs and the seed
    of the backward sweep.

    Raises:
        UnknownOpError: for a backward formula of PyTorch that mutates and cannot be functionalised.
    """
    plain = {k: fakes.constant(v) for k, v in inner_tensors(attributes).items()}
    spec: list[pytree.TreeSpec] = []

    def flat(values: Sequence[Tensor]) -> list[Any]:
        feed = iter(values)
        inner = {name: next(feed) for name in plain}
        lifted = {name: _rebuilt(name, value, inner) for name, value in attributes.items()}
        inputs = [next(feed) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        *indices, seed = feed
        results, structure = pytree.tree_flatten(run(lifted, inputs, indices, seed))
        spec.append(structure)
        return results

    device = next(v.device for v in leaves if isinstance(v, Tensor))
    seed = fakes.constant(torch.ones((), device=device))
    tensors = [*plain.values(), *(v for v in leaves if isinstance(v, Tensor)), *targets, seed]
    with fakes.mode, enable_python_dispatcher(), torch.enable_grad():
        traced = make_fx(flat)(tensors)
    traced.graph._codegen = CodeGen()
    if not functionalise(traced):  # some backward formulas mutate their own intermediate results
        raise UnknownOpError(
            "a backward formula of PyTorch mutates a tensor and has no functional form, so that the model cannot be "
            "lowered. Remedy: use explain()."
        )
    end: Any = traced.graph.output_node()
    return traced, pytree.tree_unflatten(list(end.args[0]), spec[-1])  # type: ignore[arg-type]


def check_finite(values: Iterable[Tensor]) -> None:
    """Check the target and the relevance that a graph returned.

    Raises:
        NumericalError: when one is not finite.
    """
    if any(not v.is_meta and not bool(v.isfinite().all()) for v in values):
        raise NumericalError(
            "the target or a relevance is not finite. Remedy: explain() on the same inputs names the first such node."
        )
