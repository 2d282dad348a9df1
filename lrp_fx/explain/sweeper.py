"""Stage 5, explain: one forward pass and one relevance sweep -> an :class:`Attribution`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call, Captured
from lrp_fx.capture.lock import traced_property
from lrp_fx.contracts import Stage, check_stage
from lrp_fx.errors import LrpError, NumericalError, TargetError
from lrp_fx.explain import check
from lrp_fx.explain.accounts import Sweep, account
from lrp_fx.explain.conditions import Condition, condition_masks
from lrp_fx.explain.inputs import Inputs, shares
from lrp_fx.explain.latents import find_latents
from lrp_fx.explain.ledger import make_ledger
from lrp_fx.explain.model_notes import context_of
from lrp_fx.explain.one_position import Rows
from lrp_fx.explain.reading import Reading, read_output
from lrp_fx.explain.sweep import Relevance, TapPoints, sweep
from lrp_fx.explain.tap import at_chosen_positions, tap
from lrp_fx.explain.target import beside, of_form, one_position, select
from lrp_fx.explain.target_types import OfClass, Target
from lrp_fx.explain.unchanged import changes_of
from lrp_fx.explain.unreached import unreached
from lrp_fx.results import Attribution, Later, Ledger, no_ledger
from lrp_fx.rewrite import Rewritten
from lrp_fx.rules.functions import relevance_of
from lrp_fx.status import converting, stage

Choose = Callable[[Any], Tensor]  #: output of the model -> (B,) explained values

_CONDITIONAL = (
    "a conditional explanation has no ledger: its condition cuts relevance off at a layer. Explain without "
    "condition= for a ledger."
)


@dataclass(frozen=True)
class Forward:
    """One forward pass.

    Attributes:
        points: tensors at which relevance is collected.
        explained: target -> (B,) explained values.
        output: the model's output, detached; or a ``Later`` that computes it.
    """

    points: TapPoints
    explained: Callable[[Target], Tensor]
    output: Any


@dataclass(frozen=True)
class Sweeper:
    """A rewritten graph with its sources and latents as further outputs.

    Attributes:
        captured: the capture.
        rewritten: the rewritten graph.
        tapped: flat inputs -> (output leaves, sources, latents).
        latents: module path -> captured node.
    """

    captured: Captured
    rewritten: Rewritten
    tapped: fx.GraphModule
    latents: dict[str, Node]

    @classmethod
    def build(
        cls,
        captured: Captured,
        rewritten: Rewritten,
        at: Iterable[str],
        aliases: Callable[[str], Iterable[str]] = lambda name: (),
    ) -> Sweeper:
        """Tap the rewritten graph at its sources and at the latents ``at``; ``aliases`` as in :func:`find_latents`."""
        latents = find_latents(captured.graph_module.graph, rewritten.plan.facts, at, aliases)
        tapped, plan = tap(rewritten, latents.values()), rewritten.plan
        check_stage("taps", Stage(tapped, plan.facts.ops, plan=plan))
        return cls(captured, rewritten, tapped, latents)

    @functools.cached_property
    def reading(self) -> Reading:
        """Where the model's output has its logits, and their class axis."""
        return read_output(self.captured, self.rewritten.plan.facts)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Maps relevance of sources to inputs."""
        return Inputs(self.captured, self.rewritten.plan.facts)

    @traced_property
    def swept(self) -> fx.GraphModule:
        """The tapped graph, computed only at the positions which the model itself selects (a class token)."""
        return at_chosen_positions(self.tapped, self.rewritten.plan.facts.ops)

    @traced_property
    def rows(self) -> Rows | None:
        """The tapped graph for one position of a sequence of logits; None for other outputs, or if it saves nothing."""
        return Rows.of(self.captured, self.tapped, self.reading, self.rewritten.plan.facts.ops)

    @functools.cached_property
    def weights(self) -> list[Tensor]:
        """Parameters and buffers of the graph."""
        return [*self.tapped.parameters(), *self.tapped.buffers()]

    def changes(self, leaves: Sequence[Any]) -> Callable[[str], None]:
        """A check that inputs and weights are as they are now (:func:`lrp_fx.explain.unchanged.changes_of`)."""
        return changes_of([*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *self.weights])

    def explain(self, call: Call, target: Target) -> Attribution:
        """Explain one call.

        Raises:
            TargetError: when the target does not depend on any input.
            NumericalError: when an output or a relevance is not finite.
        """
        return self.explain_under(call, target, [{}])[0]

    def explain_under(
        self, call: Call, target: Target, conditions: Sequence[Condition], checking: bool = False
    ) -> list[Attribution]:
        """Explain one call under several conditions, from one forward pass; the empty condition cuts nothing off.

        Args:
            call: the call.
            target: the target.
            conditions: one attribution for each.
            checking: check the first attribution against an accounting sweep (:mod:`lrp_fx.explain.check`).

        Raises:
            TargetError, NumericalError: as :meth:`explain`.
            LatentError: for a condition that does not fit the output of its module.
        """
        return self._explain(call, [(target, condition) for condition in conditions], checking)

    def explain_each(self, call: Call, targets: Sequence[Target]) -> list[Attribution]:
        """Explain one call for several targets of any kind, from one forward pass, one after the other.

        Raises:
            TargetError, NumericalError: as :meth:`explain`.
        """
        return self._explain(call, [(target, {}) for target in targets], False)

    def points(self, sources: Sequence[Tensor], latents: Sequence[Tensor]) -> TapPoints:
        """Tap points from the results of the tapped graph."""
        return TapPoints.of(sources, self.latents, latents, self.rewritten.plan.feeds_zeros)

    def output(self, flat: Any) -> Any:
        """The model's output in its own type, from its leaves."""
        return pytree.tree_unflatten(pytree.tree_leaves(flat), self.captured.out_spec)

    @torch.inference_mode(False)
    def _explain(self, call: Call, questions: Sequence[tuple[Target, Condition]], checking: bool) -> list[Attribution]:
        self.inputs.check()
        leaves, results = usable(call.leaves), []
        unchanged = self.changes(leaves)
        with torch.enable_grad():
            forward = self._forward(call, leaves, [target for target, _ in questions], unchanged)
            for target, condition in questions:
                choose, explained = self.choose(call, target), forward.explained(target)
                relevance = self._sweep(leaves, choose, forward.points, explained, condition, len(questions) > 1)
                results.append((choose, explained, relevance, bool(condition)))
        if checking:
            choose, explained, relevance, conditional = results[0]
            self._check(leaves, choose, None if conditional else (explained.detach(), relevance.sources))
        return [self._attribution(call, leaves, unchanged, forward.output, *result) for result in results]

    def _forward(
        self, call: Call, leaves: tuple[Any, ...], targets: Sequence[Target], unchanged: Callable[[str], None]
    ) -> Forward:
        """The forward pass. If all targets are the same object and it reads one position, the head runs there only."""
        one = self._one_position(call, leaves, targets[0]) if targets and len(set(map(id, targets))) == 1 else None
        if one is None or self.rows is None:
            flat, sources, latents = self.swept(*leaves)
            output = self.output(flat)
            detached = pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, output)
            return Forward(self.points(sources, latents), lambda target: self.choose(call, target)(output), detached)
        form, positions = one
        logits, sources, latents = self.rows.run(leaves, positions)
        later = Later(functools.partial(self._output, leaves, unchanged), logits.detach())
        return Forward(self.points(sources, latents), lambda target: of_form(form, logits), later)

    def _one_position(self, call: Call, leaves: tuple[Any, ...], target: Target) -> tuple[OfClass, Tensor] | None:
        shape = None if self.rows is None else self.rows.shape(leaves)
        return None if shape is None else one_position(target, shape, beside(call.tensors), self.reading)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _output(self, leaves: tuple[Any, ...], unchanged: Callable[[str], None]) -> Any:
        unchanged("output")
        return self.output(self.swept(*leaves)[0])

    def choose(self, call: Call, target: Target) -> Choose:
        """The function from an output to the explained values of a target."""
        inputs = beside(call.tensors)
        return lambda output: select(output, target, inputs, self.reading)

    def _sweep(
        self,
        leaves: tuple[Any, ...],
        choose: Choose,
        points: TapPoints,
        explained: Tensor,
        condition: Condition,
        again: bool,
    ) -> Relevance:
        if not explained.requires_grad:
            raise self._unreached(leaves, choose)
        masks = condition_masks(condition, points.latents)
        try:
            return sweep(points, explained, masks=masks, again=again)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError):
                self.account(leaves, choose)  # names the node whose backward fails
            raise

    def _attribution(
        self,
        call: Call,
        leaves: tuple[Any, ...],
        unchanged: Callable[[str], None],
        output: Any,
        choose: Choose,
        explained: Tensor,
        relevance: Relevance,
        conditional: bool,
    ) -> Attribution:
        plan, collected = self.rewritten.plan, relevance.sources
        self._check_finite(explained, collected, lambda: self.account(leaves, choose))
        parts = self.inputs.parts(plan.facts.sources, collected, self.inputs.values(leaves))
        of_inputs = shares(parts)

        def account(weights: Tensor | None) -> Ledger:
            unchanged("ledger")
            if weights is None:
                return make_ledger(plan, self.account(leaves, choose), of_inputs)
            return self.explain(call, lambda output: _weighed(choose(output), weights)).ledger

        return Attribution(
            relevance=self.inputs.summed(parts),
            latents=relevance.latents,
            target=explained.detach(),
            ruleset=plan.ruleset.name,
            context=context_of(plan.facts),
            inputs={name: tensor.detach() for name, tensor in call.tensors.items()},
            _output=output,
            _sources=self.inputs.by_source(plan.sources, collected),
            _account=no_ledger(_CONDITIONAL) if conditional else account,
        )

    @torch.inference_mode(False)
    def check(self, call: Call, target: Target) -> None:
        """Run the checks of an accounting sweep (:mod:`lrp_fx.explain.check`) on one call, without explaining it.

        Raises:
            NumericalError: as :func:`lrp_fx.explain.check.check`.
        """
        self._check(usable(call.leaves), self.choose(call, target), None)

    def _check(
        self, leaves: tuple[Any, ...], choose: Choose, explained: tuple[Tensor, Sequence[Tensor]] | None
    ) -> None:
        if any(isinstance(v, Tensor) and v.is_meta for v in leaves):
            return
        with converting("the model"):
            stage("check of the first explanation")
            accounted = self.account(leaves, choose)
            self._check_finite(accounted.target, [] if explained is None else explained[1], lambda: accounted)
            check.check(self.captured, self.rewritten, leaves, accounted, explained)

    def _check_finite(self, explained: Tensor, relevance: Sequence[Tensor], account: Callable[[], Sweep]) -> None:
        check.check_finite(self.captured, self.rewritten, explained, relevance, account)

    def _unreached(self, leaves: tuple[Any, ...], choose: Choose) -> LrpError:
        """The error for a target without a gradient."""
        lost = self.account(leaves, choose).lost
        return (
            NumericalError(check.no_derivative(lost[-1]))
            if lost
            else TargetError(unreached(self.captured, self.rewritten.plan))
        )

    @torch.inference_mode(False)
    def relevance_of_nodes(self, call: Call, target: Target) -> dict[str, float]:
        """Name of a captured node -> relevance that arrives at it, or that it collects as a source; summed."""
        sweep = self.account(usable(call.leaves), self.choose(call, target))
        arrived = {node.name: account.arrived for node, account in sweep.accounts.items() if account.outputs}
        collected = {
            node.name: float(relevance_of(value.double(), cotangent.double()).sum())
            for node, (value, cotangent) in sweep.sources.items()
        }
        return {**arrived, **collected}

    def account(self, leaves: tuple[Any, ...], choose: Choose) -> Sweep:
        """The accounting sweep on the same inputs."""
        return account(self.rewritten, leaves, choose, self.captured.out_spec)


def _weighed(values: Tensor, weights: Tensor) -> Tensor:
    return values * weights.to(values.device, values.dtype)


def usable(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Flat inputs for autograd: tensors of inference mode are copied."""
    return tuple(v.clone() if isinstance(v, Tensor) and v.is_inference() else v for v in leaves)
