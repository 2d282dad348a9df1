"""Stage 5, explain: one forward and one relevance sweep -> an :class:`Attribution`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from lrp_fx.analysis import Source
from lrp_fx.capture import Call, Captured
from lrp_fx.contracts import Stage, check_stage
from lrp_fx.errors import InputError, LrpError, NumericalError, TargetError
from lrp_fx.explain import check, tokens
from lrp_fx.explain.accounts import Sweep, account
from lrp_fx.explain.attribution import Attribution, no_ledger
from lrp_fx.explain.conditions import Condition, under
from lrp_fx.explain.latents import find_latents
from lrp_fx.explain.ledger import Entry, Ledger, make_ledger
from lrp_fx.explain.reading import Reading, read_output
from lrp_fx.explain.target import Contrast, Pixels, Target, padding_masks, select
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.location import locate
from lrp_fx.graph.values import Values
from lrp_fx.passes.hoist_slices import behind_selection, drop_whole_slices, may_move
from lrp_fx.passes.unrepeat_kv import share_heads
from lrp_fx.rewrite import Rewritten
from lrp_fx.rules.functions import nonzero, relevance_of, source

__all__ = ["Attribution", "Condition", "Contrast", "Entry", "Ledger", "Pixels", "Sweeper", "Target"]

_CONDITIONAL = (
    "a conditional explanation has no ledger: what its condition cuts off stays at that layer. Explain without "
    "condition= for the whole account."
)


@dataclass(frozen=True)
class Sweeper:
    """A rewritten graph with its sources and latents as further outputs.

    Attributes:
        captured: the capture it serves.
        rewritten: the rewritten graph.
        tapped: flat inputs -> (output leaves, sources, latents).
        latents: module path -> captured node.
    """

    captured: Captured
    rewritten: Rewritten
    tapped: fx.GraphModule
    latents: dict[str, Node]

    @classmethod
    def build(cls, captured: Captured, rewritten: Rewritten, at: Iterable[str]) -> Sweeper:
        """Tap the rewritten graph at its sources and at the modules named by ``at``."""
        latents = find_latents(captured.graph_module.graph, rewritten.plan.facts, at)
        graph, mapping = copy_graph(rewritten.graph_module.graph)
        graph._codegen = CodeGen()
        taps = []
        for item in rewritten.plan.sources:
            node = mapping[rewritten.copies[item.node]]
            with graph.inserting_after(node):
                tap = graph.call_function(source, (node,))
            tap.meta["val"] = node.meta.get("val")
            node.replace_all_uses_with(tap, delete_user_cb=functools.partial(operator.is_not, tap))
            taps.append(tap)
        end = graph.output_node()
        read = dict(zip([s.node for s in rewritten.plan.sources], taps, strict=True))
        held = [read.get(n) or mapping[rewritten.results[n]] for n in latents.values()]
        end.args = ((end.args[0], taps, held),)
        share_heads(graph, rewritten.plan.facts.ops)
        drop_whole_slices(graph)
        module = fx.GraphModule(rewritten.graph_module, graph, class_name="TappedGraph")
        check_stage("taps", Stage(module, rewritten.plan.facts.ops, plan=rewritten.plan))
        return cls(captured, rewritten, module, latents)

    @functools.cached_property
    def reading(self) -> Reading:
        """How the model's output is read."""
        return read_output(self.captured, self.rewritten.plan.facts)

    @functools.cached_property
    def swept(self) -> fx.GraphModule:
        """The tapped graph, where the model itself chooses positions (a class token, the last ones) at these alone."""
        if not may_move(self.tapped.graph, self.rewritten.plan.facts.ops):
            return self.tapped
        graph, _ = copy_graph(self.tapped.graph)
        graph.owning_module = self.tapped  # dead code is told by what the graph calls
        behind_selection(graph, self.rewritten.plan.facts.ops)
        return fx.GraphModule(self.tapped, graph, class_name="SweptGraph")

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
            target: which scalars.
            conditions: one attribution for each.
            checking: hold what is found to an accounting sweep (:meth:`check`).

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

    def _explain(self, call: Call, asked: Sequence[tuple[Target, Condition]], checking: bool) -> list[Attribution]:
        if not self.rewritten.plan.facts.sources:
            raise InputError(
                "no input can carry relevance: there is no floating input and no token id that picks a table row"
            )
        masks = padding_masks(call.tensors)

        def choose(target: Target, output: Any) -> Tensor:
            return select(output, target, masks, self.reading)

        leaves = usable(call.leaves)
        results = []
        with torch.inference_mode(False), torch.enable_grad():
            flat, taps, held = self.swept(*leaves)
            output = pytree.tree_unflatten(pytree.tree_leaves(flat), self.captured.out_spec)
            for target, condition in asked:
                chosen = choose(target, output)
                chooser = functools.partial(choose, target)
                if not chosen.requires_grad:
                    raise self._unreached(leaves, chooser)
                with under(condition, dict(zip(self.latents, held, strict=True))):
                    grads = self._back(leaves, chooser, chosen, [*taps, *held], len(asked) > 1)
                results.append((chooser, chosen, grads, bool(condition)))
        if checking:
            chooser, chosen, grads, conditional = results[0]
            found = None if conditional else (chosen.detach(), self._collected(taps, grads))
            self._check(leaves, chooser, found)
        return [
            self._attribution(leaves, chooser, output, chosen, taps, held, grads, conditional)
            for chooser, chosen, grads, conditional in results
        ]

    def _back(
        self, leaves: tuple[Any, ...], choose: Callable[[Any], Tensor], chosen: Tensor, read: list[Tensor], again: bool
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of ``read``, of those that have none left out; ``again``: another sweep follows."""
        wanted = [t for t in read if t.requires_grad]
        try:
            return torch.autograd.grad(chosen.sum(), wanted, allow_unused=True, retain_graph=again)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError):
                self.account(leaves, choose)  # names the node whose backward fails
            raise

    def _attribution(
        self,
        leaves: tuple[Any, ...],
        choose: Callable[[Any], Tensor],
        output: Any,
        chosen: Tensor,
        taps: Sequence[Tensor],
        held: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        conditional: bool,
    ) -> Attribution:
        plan = self.rewritten.plan
        collected = self._collected(taps, grads)
        latent_grads = iter(grads[len(taps) :])
        latents = {
            path: relevance_of(z, next(latent_grads) if z.requires_grad else None)
            for path, z in zip(self.latents, held, strict=True)
        }
        self._check_finite(chosen, collected, lambda: self.account(leaves, choose))
        moved = self._moved(plan.facts.sources, collected, self.values(leaves))
        # how much of a source belongs to inputs, where that is not all of it
        owned: dict[Node, float] = {}
        for item, _, value in moved:
            if any(indices is not owner for owner, indices in item.picks) and not value.is_meta:
                owned[item.node] = owned.get(item.node, 0.0) + float(value.double().sum())
        return Attribution(
            self._summed(moved),
            latents,
            chosen.detach(),
            pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, output),
            plan.ruleset.name,
            self._named(plan.sources, collected),
            no_ledger(_CONDITIONAL) if conditional else lambda: make_ledger(plan, self.account(leaves, choose), owned),
        )

    def _collected(self, taps: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
        blind = self.rewritten.plan.blind
        return [relevance_of(nonzero(x) if blind else x, g) for x, g in zip(taps, grads, strict=False)]

    def check(self, call: Call, target: Target) -> None:
        """Hold one call to an accounting sweep (``lrp_fx.explain.check``), without explaining it.

        Raises:
            NumericalError: for what does not hold.
        """
        masks = padding_masks(call.tensors)
        self._check(usable(call.leaves), lambda output: select(output, target, masks, self.reading), None)

    def _check(
        self,
        leaves: tuple[Any, ...],
        choose: Callable[[Any], Tensor],
        explained: tuple[Tensor, Sequence[Tensor]] | None,
    ) -> None:
        if any(isinstance(v, Tensor) and v.is_meta for v in leaves):
            return
        sweep = self.account(leaves, choose)
        self._check_finite(sweep.target, [] if explained is None else explained[1], lambda: sweep)
        check.check(self.captured, self.rewritten, leaves, sweep, explained)

    def _unreached(self, leaves: tuple[Any, ...], choose: Callable[[Any], Tensor]) -> LrpError:
        """Why the target has no gradient."""
        lost = self.account(leaves, choose).lost
        if lost:
            return NumericalError(check.no_derivative(lost[-1]))
        return TargetError(check.UNREACHED)

    def account(self, leaves: tuple[Any, ...], choose: Callable[[Any], Tensor]) -> Sweep:
        """The accounting sweep on the same inputs."""
        return account(self.rewritten, leaves, choose, self.captured.out_spec)

    def _named(self, sources: list[Source], collected: list[Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for item, relevance in zip(sources, collected, strict=True):
            given = item.input.op == "placeholder"
            name = self._input_name(item.input) if given and item.indices is None else item.name
            named[f"{name} ({self._input_name(item.input)})" if given and name in named else name] = relevance
        return named

    def _input_name(self, placeholder: Node) -> str:
        return self.captured.names[self.captured.placeholders.index(placeholder)]

    def values(self, leaves: Sequence[Any]) -> Values:
        """Values of captured nodes on flat inputs."""
        return Values.of(self.captured.graph_module, dict(zip(self.captured.placeholders, leaves, strict=True)))

    def per_input(self, sources: Sequence[Source], collected: Sequence[Tensor], values: Values) -> dict[str, Tensor]:
        """Input name -> relevance, from that of ``sources``, elementwise; ``values`` are those of integer nodes."""
        return self._summed(self._moved(sources, collected, values))

    def _moved(
        self, sources: Sequence[Source], collected: Sequence[Tensor], values: Values
    ) -> list[tuple[Source, Node, Tensor]]:
        """(source, input, relevance in the shape of that input): that of rows goes to the values which picked them."""
        facts = self.rewritten.plan.facts
        moved = []
        for item, value in zip(sources, collected, strict=False):
            parts = tokens.to_inputs(item, value, values, facts) if item.picks else [(item.input, value)]
            moved += [(item, owner, part) for owner, part in parts]
        return moved

    def _summed(self, moved: Iterable[tuple[Source, Node, Tensor]]) -> dict[str, Tensor]:
        relevance: dict[str, Tensor] = {}
        for _, owner, value in moved:
            name = self._input_name(owner)
            relevance[name] = relevance[name] + value if name in relevance else value
        return relevance

    def _check_finite(self, chosen: Tensor, collected: Sequence[Tensor], account: Callable[[], Sweep]) -> None:
        if chosen.is_meta or (bool(chosen.isfinite().all()) and all(bool(r.isfinite().all()) for r in collected)):
            return
        sweep = account()
        if not bool(chosen.isfinite().all()):
            first = check.first_nonfinite(self.captured, self.rewritten, sweep)
            where = f", first at {locate(first)}" if first is not None else ""
            raise NumericalError(
                f"the explained output is not finite{where}. Remedy: check the inputs, or use float32."
            )
        broken = check.first_broken(sweep)
        where = locate(broken) if broken is not None else "an input"
        raise NumericalError(
            f"relevance is not finite, first at {where}. Remedy: explain "
            "in float32 or float64, or override the rule of that module in the rule set (a larger epsilon, or a rule "
            "that does not divide)."
        )


def usable(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Flat inputs that autograd can work with: tensors of inference mode are copied."""
    return tuple(v.clone() if isinstance(v, Tensor) and v.is_inference() else v for v in leaves)
