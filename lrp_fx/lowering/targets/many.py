"""Many targets from one forward pass: their backward sweeps run as one, batched.

Targets are chosen inside the graph, hoisted as far as possible (:mod:`lrp_fx.passes.hoist_slices`): with 64 targets the
head of a language model runs at 64 positions, and no cotangent has the shape of all its logits.

The first steps are those of :func:`lrp_fx.lowering.lower`: the same fake inputs, the same choice of the target in the
graph, the same shape guards. The last step, the trace of a joint graph, is left out for three reasons. Tracing takes
several times as long as the steps before it (two layers of a decoder: 7.7 s of processor time after 2.0 s), and the
first call would wait for it. Under ``make_fx`` the batching rules of ``slice_backward`` and ``cat`` read sizes as
integers, which fixes the number of targets, and with it batch and length: rotary embeddings and a split of queries,
keys and values are enough. Each number of targets would need a graph of its own. And a joint graph runs the forward
pass for every chunk of targets, where here it runs once. (Measured with PyTorch 2.13 on 26 November 2026.)
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lrp_fx.capture import Call
from lrp_fx.errors import InputError, TargetError
from lrp_fx.explain import Sweeper, Target, usable
from lrp_fx.explain.model_notes import context_of
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.sweep import sweep_each
from lrp_fx.explain.target import at_positions, last_positions, resolved, weighed_others
from lrp_fx.explain.target_types import Contrast, Logit, check_range
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.loop import has_loops
from lrp_fx.graph.values import Values
from lrp_fx.lowering.dynamic_shapes import ShapeGuards, dynamic_if_possible, fake_inputs
from lrp_fx.lowering.joint_graph import Targeted, check_finite, with_target
from lrp_fx.lowering.targets.batched_attention import fold_targets
from lrp_fx.lowering.targets.spec import TargetSpec
from lrp_fx.operators.table import bind, set_arg
from lrp_fx.results import Attributions

#: rows of features in one batched backward sweep: with fewer, a CPU's matrix products stay below their peak; with more,
#: intermediate values do not fit its caches (measured at 100 and at 512 tokens; accelerators are untested)
_ROWS, _MOST = {"cpu": 1024}, 16
_LAST = _LARGEST = -(2**40)  #: index for the last position, and for the largest logit
_NOTHING, _OTHERS = -(2**40), -(2**41)  #: foils of a logit (none) and of a contrast with all other classes


@dataclass(frozen=True)
class ManyTargets:
    """A tapped graph that explains any number of targets.

    Attributes:
        sweeper: the tapped graph without targets.
        targeted: a graph (flat inputs, positions, classes) -> (no outputs, tap points, latents, explained values); for
            contrasts, (flat inputs, positions, classes, foils).
        guards: shape guards.
    """

    sweeper: Sweeper
    targeted: Targeted
    guards: ShapeGuards

    @classmethod
    def build(cls, sweeper: Sweeper, call: Call, contrasts: bool) -> ManyTargets:
        """Insert the choice of the targets into the tapped graph.

        Shapes are dynamic where the capture's are, unless that fails (:func:`dynamic_if_possible`).

        Args:
            sweeper: the tapped graph.
            call: the example inputs.
            contrasts: explain contrasts, too: the head then runs for all classes, at explained positions.
        """
        sweeper.inputs.check()
        make = functools.partial(cls._build, sweeper, call, _CONTRASTS if contrasts else _MANY)
        return dynamic_if_possible(make, list(call.tensors.values()))

    @classmethod
    def _build(cls, sweeper: Sweeper, call: Call, spec: TargetSpec, dynamic: bool) -> ManyTargets:
        fakes = fake_inputs(call.leaves, call.names, sweeper.captured.shapes, dynamic)
        targeted = with_target(sweeper, spec, call.names, fakes, report=False)
        _batch_backward(targeted.graph_module.graph)
        targeted.graph_module.recompile()
        guards = ShapeGuards.of(sweeper.captured.shapes, fakes, targeted.sizes)
        return cls(sweeper, targeted, guards)

    @torch.inference_mode(False)
    def explain(self, call: Call, targets: Sequence[Target], chunk: int | None) -> Attributions:
        """Explain one call.

        Args:
            call: the inputs.
            targets: logits and contrasts, class indices, (B,) tensors of them, or tuples (position, class), resolved.
            chunk: number of backward sweeps in one batch; memory grows with it. None: the fastest (:func:`at_once`).

        Raises:
            TargetError: for a target that selects no single value per sample, or is out of range.
            NumericalError: when a relevance is not finite.
        """
        tensors = list(call.tensors.values())
        if (reason := self.guards.mismatch(tensors)) is not None:
            raise InputError(f"prepared for other sizes: {reason}")
        sizes = self.guards.limits(tensors)
        batch, device = sizes[0] or tensors[0].shape[0], tensors[0].device
        picks = torch.stack([_pick(t, sizes, batch, device) for t in targets])  # (T, 3, B)
        leaves = usable(call.leaves)
        with torch.enable_grad():
            indices = [picks[:, i].T for i in range(len(self.targeted.inputs))]
            _, sources, latents, explained = self.targeted.graph_module(*leaves, *indices)
            points = self.sweeper.points(sources, latents)
            seeds = _one_per_target(len(picks), batch, explained)
            relevance = sweep_each(points, explained, seeds, chunk or at_once(tensors))
        check_finite(relevance.sources)
        values = self.sweeper.inputs.values(leaves)
        per_target = [self._per_input([r[i] for r in relevance.sources], values) for i in range(len(picks))]
        return Attributions(
            relevance={name: torch.stack([r[name] for r in per_target]) for name in per_target[0]},
            latents=relevance.latents,
            target=explained.detach().T,
            ruleset=self.sweeper.rewritten.plan.ruleset.name,
            context=context_of(self.sweeper.rewritten.plan.facts),
            inputs={name: tensor.detach() for name, tensor in call.tensors.items()},
        )

    def _per_input(self, relevance: Sequence[Tensor], values: Values) -> dict[str, Tensor]:
        """Input name -> relevance for one target, from relevance at every tap point."""
        inputs = self.sweeper.inputs
        return inputs.per_input(inputs.facts.sources, self.targeted.per_source(relevance), values)


#: up to so many targets, backward sweeps through a loop run one after the other: a batch of them has a graph that is
#: traced, with its steps written out, for every length
_FEW = 32


def explain_targets(
    sweeper: Sweeper, many: Callable[[bool], ManyTargets], call: Call, targets: Sequence[Target], chunk: int | None
) -> Attributions:
    """Explain several targets: batched where all are positions and classes, otherwise one after the other.

    A few targets behind a loop are explained one after the other, too.

    Args:
        sweeper: the tapped graph.
        many: builds or looks up its graph for many targets; the argument says whether with contrasts.
        call: the call.
        targets: in normal form (:func:`lrp_fx.explain.target_types.normal_targets`).
        chunk: as in :meth:`ManyTargets.explain`.

    Raises:
        TargetError: for a target that does not fit.
        NumericalError: when a relevance is not finite.
    """
    targets = [resolved(target, sweeper.reading) for target in targets]
    if _are_picks(sweeper, targets) and not (len(targets) <= _FEW and has_loops(sweeper.tapped.graph)):
        return many(any(isinstance(t, Contrast) for t in targets)).explain(call, targets, chunk)
    explained = sweeper.explain_each(call, targets)
    if len({one.target.shape for one in explained}) > 1:
        raise TargetError("a target that names one sample does not go with others that are for all of them")
    return Attributions(
        relevance={name: torch.stack([one.relevance[name] for one in explained]) for name in explained[0].relevance},
        latents={path: torch.stack([one.latents[path] for one in explained]) for path in explained[0].latents},
        target=torch.stack([one.target for one in explained]),
        ruleset=explained[0].ruleset,
        context=explained[0].context,
        inputs=explained[0].inputs,
    )


def _are_picks(sweeper: Sweeper, targets: Sequence[Target]) -> bool:
    """Whether all targets are entries of (B, C) or (B, S, C) logits, or contrasts between entries."""
    logits = sweeper.reading.example
    if logits is None:
        return False
    kind = sweeper.reading.kind(logits)
    formed = [t for t in targets if isinstance(t, (Logit, Contrast))]
    if kind == "single" and any(isinstance(t, Contrast) for t in formed):
        return False
    if kind != "sequence" and any(t.position is not None for t in formed):
        return False
    width = max(logits.dim() - 1, 1)
    if any(isinstance(t, tuple) and not all(isinstance(p, (int, Tensor)) for p in t) for t in targets):
        return False
    tuples = [isinstance(t, tuple) and len(t) == width for t in targets]
    plain = [isinstance(t, (int, Tensor, Logit, Contrast)) for t in targets]
    if kind in ("single", "classes", "sequence"):
        return all(a or b for a, b in zip(tuples, plain, strict=True))
    return logits.dim() == 3 and all(tuples)


def batched_sweeper(sweeper: Sweeper) -> Sweeper:
    """The same graph for batched backward sweeps (:func:`sweep_each`)."""
    graph, _ = copy_graph(sweeper.tapped.graph)
    _batch_backward(graph)
    return replace(sweeper, tapped=fx.GraphModule(sweeper.tapped, graph, class_name="BatchedGraph"))


def _batch_backward(graph: fx.Graph) -> None:
    """Replace operators whose backward has no batching rule, or a wrong one."""
    fold_targets(graph)
    _plain_bounds(graph)


def _plain_bounds(graph: fx.Graph) -> None:
    """Rewrite negative or out-of-range bounds of slice_scatter as non-negative ones: vmap does not clamp."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.slice_scatter.default):
        bound = bind(node)
        size = bound["self"].meta["val"].shape[bound["dim"]]
        for name in ("start", "end"):
            at = bound[name]
            if not isinstance(at, int):
                continue
            if at >= (size if isinstance(size, int) else 2**31):
                set_arg(node, name, None if name == "end" else size)
            elif at < 0 and isinstance(size, int):
                set_arg(node, name, max(at + size, 0))
            elif at < 0:
                with graph.inserting_before(node):
                    length = graph.call_function(aten.sym_size.int, (bound["self"], bound["dim"]))
                    set_arg(node, name, graph.call_function(operator.add, (length, at)))


def at_once(inputs: Sequence[Tensor]) -> int:
    """Number of targets in one batched sweep, from the number of tokens; 4 without token ids."""
    tokens = [t for t in inputs if not t.is_floating_point() and t.dtype is not torch.bool and t.dim() == 2]
    if not tokens:
        return 4
    rows = _ROWS.get(tokens[0].device.type, 8 * 1024)
    return min(max(rows // max(t.numel() for t in tokens), 1), _MOST)


def _choose(reading: Reading, output: Any, inputs: Mapping[str, Tensor], position: Tensor, index: Tensor) -> Tensor:
    """(B, T) values at (B, T) positions and classes."""
    logits = reading.logits(output)
    if logits.dim() < 2:
        return logits.reshape(-1, 1).expand_as(index)
    logits = _at(logits, inputs, position)
    return logits.gather(2, _class(logits, index)[..., None]).squeeze(2)


def _contrast(
    reading: Reading, output: Any, inputs: Mapping[str, Tensor], position: Tensor, index: Tensor, foil: Tensor
) -> Tensor:
    """(B, T) logits at (B, T) positions and classes, minus the foils' logits."""
    logits = _at(reading.logits(output), inputs, position)
    wide = logits.float() if logits.element_size() < 4 else logits
    chosen = _class(wide, index)
    one = wide.gather(2, (foil % wide.shape[2])[..., None]).squeeze(2)
    against = torch.where(foil == _OTHERS, weighed_others(wide, chosen), torch.where(foil == _NOTHING, 0.0, one))
    return (wide.gather(2, chosen[..., None]).squeeze(2) - against).to(logits.dtype)


def _at(logits: Tensor, inputs: Mapping[str, Tensor], position: Tensor) -> Tensor:
    """(B, T, C) logits at (B, T) positions; (B, C) logits repeated for every target."""
    if logits.dim() < 3:
        return logits[:, None].expand(-1, position.shape[1], -1)
    last = last_positions(logits.shape[1], logits.shape[0], inputs).to(logits.device)
    return at_positions(logits, torch.where(position == _LAST, last[:, None], position % logits.shape[1]))


def _class(logits: Tensor, index: Tensor) -> Tensor:
    return torch.where(index == _LARGEST, logits.detach().argmax(-1), index % logits.shape[2])


_MANY = TargetSpec("many", ("position", "index"), _choose)
_CONTRASTS = TargetSpec("contrasts", ("position", "index", "foil"), _contrast)


def _pick(target: Target, sizes: Sequence[int | None], batch: int, device: torch.device) -> Tensor:
    """(3, B): position, class and foil of one target."""
    classes = sizes[-1] if len(sizes) > 1 else 1
    if isinstance(target, (Logit, Contrast)):
        foil: Any = _NOTHING
        if isinstance(target, Contrast):
            foil = _OTHERS if target.foil is None else target.foil
        place, chosen = (_LARGEST if v is None else v for v in (target.position, target.chosen))
        return torch.stack([
            _filled(place, sizes[1] if len(sizes) > 2 else None, batch, device, "position"),
            _filled(chosen, classes, batch, device), _filled(foil, classes, batch, device),
        ])  # fmt: skip
    entries = list(target) if isinstance(target, tuple) else [target]
    if len(entries) > max(len(sizes) - 1, 1):
        raise TargetError(f"target {target} has {len(entries)} indices, the output {len(sizes) - 1} besides the batch")
    position: list[Any] = [_LAST] if len(entries) == 1 else []
    limits = [None, sizes[-1]] if len(entries) == 1 else list(sizes[1:])
    if len(entries) > 1 and len(entries) != len(limits):
        raise TargetError(f"target {target} has {len(entries)} indices, the output {len(sizes) - 1} besides the batch")
    indices = [_filled(v, n, batch, device) for v, n in zip([*position, *entries], limits, strict=True)]
    return torch.stack([*indices, _filled(_NOTHING, None, batch, device)])


def _filled(value: Any, limit: int | None, batch: int, device: torch.device, what: str = "target") -> Tensor:
    if not isinstance(value, int) or value not in (_LARGEST, _OTHERS):
        check_range(value, batch, limit, what)
    return torch.as_tensor(value).to(device).long().expand(batch)


def _one_per_target(count: int, batch: int, like: Tensor) -> Tensor:
    """(T, B, T): cotangents that pick the values of one target each."""
    return torch.eye(count, dtype=like.dtype, device=like.device)[:, None].expand(-1, batch, -1)
