"""A specialization: one capture with its facts, and per rule set its rewritten, tapped and compiled graphs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from lrp_fx.analysis import Facts, analyse
from lrp_fx.capture import TRACING, Call, Captured, failing_node
from lrp_fx.capture.garbage import uncollected
from lrp_fx.capture.lock import traced_property
from lrp_fx.contracts import Stage, check_stage
from lrp_fx.errors import InputError, NumericalError
from lrp_fx.explain import Condition, Sweeper, Target
from lrp_fx.explain.latents import looks_inside
from lrp_fx.explain.reading import Reading, read_output
from lrp_fx.explain.target_types import normal_targets
from lrp_fx.graph.lazy_module import with_code
from lrp_fx.graph.location import locate
from lrp_fx.graph.unfuse_attention import write_out_attention
from lrp_fx.lowering import Lowered, ManyTargets, batched_sweeper, explain_targets
from lrp_fx.lowering import low_memory as with_checkpoints
from lrp_fx.plan import make_plan
from lrp_fx.recent import Recent
from lrp_fx.results import Accounting, Attribution, Attributions
from lrp_fx.results.notes import Note
from lrp_fx.rewrite import Rewritten, rewrite
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.status import converting, stage
from lrp_fx.verify.custom_backward import custom_backward_note

_GRAPHS = 16  #: cache size of each kind of graph

Key = tuple[str, tuple[str, ...]]  #: rule set, latents


def _recent() -> Recent[Any, Any]:
    return Recent(_GRAPHS)


@functools.cache
def _gradient_key() -> str:
    """The key of the gradient rules, whose file is read once."""
    return RuleSet.load("gradient").key


@dataclass
class Specialization:
    """One capture with its facts, and caches of the graphs derived from it.

    Attributes:
        captured: the capture.
        facts: facts of its graph.
        example: the example inputs, without values.
        rewritten: rewritten graphs by rule set.
        sweepers: tapped graphs by rule set and latents.
        checkpointed: tapped graphs with checkpointed blocks, by rule set and latents.
        many: graphs for many targets, by rule set, latents, and whether with contrasts.
        batched: tapped graphs for many seeds of one tensor, by rule set and latents.
        compiled: compiled graphs without a condition, by rule set and latents, the latest first.
        checked: (rule set, whether fused attention was decomposed) of explanations that passed their first check.
        gradient_notes: notes of the first explanation under the gradient rules; None before it.
        aliases: name of a latent that is no path in the model -> paths of the module that it means.
    """

    captured: Captured
    facts: Facts
    example: Call
    rewritten: Recent[str, Rewritten] = field(default_factory=_recent)
    sweepers: Recent[Key, Sweeper] = field(default_factory=_recent)
    checkpointed: Recent[Key, Sweeper] = field(default_factory=_recent)
    many: Recent[tuple[str, tuple[str, ...], bool], ManyTargets] = field(default_factory=_recent)
    batched: Recent[Key, Sweeper] = field(default_factory=_recent)
    compiled: Recent[Key, tuple[Lowered, ...]] = field(default_factory=_recent)
    checked: set[tuple[str, bool]] = field(default_factory=set)
    gradient_notes: tuple[Note, ...] | None = None
    aliases: Callable[[str], Iterable[str]] = field(default=lambda name: (), repr=False)

    def explain(
        self,
        ruleset: RuleSet,
        at: tuple[str, ...],
        call: Call,
        target: Target,
        conditions: Sequence[Condition],
        low_memory: bool,
        when: str | bool,
    ) -> list[Attribution]:
        """Explain one call under each condition, with the compiled, the checkpointed or the plain graph.

        Args:
            ruleset: the rule set.
            at: names of latents, including those of the conditions.
            call: the call.
            target: the target.
            conditions: one attribution for each; the empty condition cuts nothing off.
            low_memory: checkpoint repeated blocks.
            when: when explanations are checked (``lrp_fx.explain.check``); with checkpointed blocks never.
        """
        checking = not low_memory and self._check_is_due(ruleset, at, when)
        compiled = None if low_memory or any(conditions) else self.compiled_for(ruleset, at, call, target)
        with self.named_failures(call):
            if compiled is not None:
                if checking:
                    self._check(ruleset, at, call, target)
                with contextlib.suppress(NumericalError):  # the eager sweep below names the node
                    return [compiled.explain_call(call, target) for _ in conditions]
            sweeper = self.checkpointed_sweeper(ruleset, at) if low_memory else self.sweeper(ruleset, at)
            attributions = sweeper.explain_under(call, target, conditions, checking)
        if checking:
            self._note_checked(ruleset, at)
        return attributions

    def explain_targets(
        self,
        ruleset: RuleSet,
        at: tuple[str, ...],
        call: Call,
        targets: Sequence[Target],
        chunk: int | None,
        when: str | bool,
    ) -> Attributions:
        """Explain one call for several targets (:func:`lrp_fx.lowering.explain_targets`); a check uses the first."""
        targets = normal_targets(targets)
        sweeper = self.sweeper(ruleset, at)
        with self.named_failures(call):
            if self._check_is_due(ruleset, at, when):
                self._check(ruleset, at, call, targets[0])
            many = functools.partial(self.many_targets, ruleset, at, call)
            return explain_targets(sweeper, many, call, targets, chunk)

    def notes_on_gradient(
        self,
        model: Callable[[], torch.nn.Module],
        ruleset: RuleSet,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Target,
        when: str | bool,
    ) -> tuple[Note, ...]:
        """Notes on explanations under the gradient rules (:mod:`lrp_fx.verify.custom_backward`).

        They are computed at the first explanation, or at each if ``when`` is "always". Empty under other rule sets, and
        if ``when`` is False.
        """
        if not when or ruleset.key != _gradient_key():
            return ()
        if self.gradient_notes is None or when == "always":
            note = custom_backward_note(model(), self.sweeper(ruleset, ()), call, args, kwargs, target)
            self.gradient_notes = () if note is None else (note,)
        return self.gradient_notes

    def account_of(self, ruleset: RuleSet, call: Call, targets: Sequence[Target], number: int) -> Accounting:
        """The function that computes the ledger of one of several targets of a call, by a sweep for this target."""
        return self.sweeper(ruleset, ()).explain_under(call, targets[number], [{}], False)[0]._account

    def _check_is_due(self, ruleset: RuleSet, at: tuple[str, ...], when: str | bool) -> bool:
        """Whether the next explanation is checked: "always", the "first" one only, or never (False)."""
        return when == "always" or (when == "first" and (ruleset.key, looks_inside(at)) not in self.checked)

    def _check(self, ruleset: RuleSet, at: tuple[str, ...], call: Call, target: Target) -> None:
        self.sweeper(ruleset, at).check(call, target)
        self._note_checked(ruleset, at)

    def _note_checked(self, ruleset: RuleSet, at: tuple[str, ...]) -> None:
        self.checked.add((ruleset.key, looks_inside(at)))

    @cached_property
    def reading(self) -> Reading:
        """Where the model's output has its logits, and their class axis."""
        return read_output(self.captured, self.facts)

    def under(self, ruleset: RuleSet) -> Rewritten:
        """The graph rewritten under ``ruleset``."""

        def make() -> Rewritten:
            graph_module, ops = self.captured.graph_module, self.facts.ops
            stage("plan")
            plan = make_plan(graph_module.graph, self.facts, ruleset)
            check_stage("plan", Stage(graph_module, ops, self.facts, plan))
            stage("rewrite")
            rewritten = rewrite(self.captured, plan)
            check_stage("rewrite", Stage(rewritten.graph_module, ops, self.facts, plan, rewritten))
            with_code(rewritten.graph_module)
            return rewritten

        if ruleset.key in self.rewritten:  # no status line, which torch.compile could not trace
            return self.rewritten.recall(ruleset.key, make)
        with converting("the model"), uncollected():
            return self.rewritten.recall(ruleset.key, make)

    def sweeper(self, ruleset: RuleSet, at: tuple[str, ...]) -> Sweeper:
        """The rewritten graph with tap points at its sources and at ``at``."""
        return (self.written_out if looks_inside(at) else self)._tapped(ruleset, at)

    def _tapped(self, ruleset: RuleSet, at: tuple[str, ...]) -> Sweeper:
        build = functools.partial(Sweeper.build, self.captured, aliases=self.aliases)
        return self.sweepers.recall((ruleset.key, at), lambda: build(self.under(ruleset), at))

    def forget(self, key: str) -> None:
        """Drop all graphs of a rule set."""
        self.rewritten.pop(key, None)
        eager = (self.sweepers, self.checkpointed, self.batched)
        stores: tuple[Recent[Any, Any], ...] = (*eager, self.many, self.compiled)
        for store in stores:
            for tapped in [k for k in store if k[0] == key]:
                store.pop(tapped, None)
        self.checked -= {(key, False), (key, True)}
        if "written_out" in self.__dict__:
            self.written_out.forget(key)

    @traced_property
    def written_out(self) -> Specialization:
        """The specialization with every fused attention decomposed."""
        captured = replace(self.captured, graph_module=write_out_attention(self.captured.graph_module))
        facts = analyse(captured.graph_module.graph, self.facts.ops)
        facts.seen_through = self.facts.seen_through
        check_stage("analysis", Stage(captured.graph_module, self.facts.ops, facts))
        return Specialization(captured, facts, self.example, aliases=self.aliases)

    def checkpointed_sweeper(self, ruleset: RuleSet, at: tuple[str, ...]) -> Sweeper:
        """The tapped graph with its repeated blocks checkpointed."""
        return self.checkpointed.recall((ruleset.key, at), lambda: with_checkpoints(self.sweeper(ruleset, at)))

    def many_targets(self, ruleset: RuleSet, at: tuple[str, ...], call: Call, contrasts: bool) -> ManyTargets:
        """The graph for many targets that serves ``call``: for logits, or with ``contrasts`` for contrasts, too."""
        key = (ruleset.key, at, contrasts)
        many = self.many.get(key)
        if many is None or many.guards.mismatch(list(call.tensors.values())) is not None:
            with TRACING:
                many = self.many[key] = ManyTargets.build(self.sweeper(ruleset, at), call, contrasts)
        return many

    def batched_sweeper(self, ruleset: RuleSet, call: Call, target: Target, when: str | bool) -> Sweeper:
        """The tapped graph for many seeds of one tensor of the output; a check uses the target."""
        sweeper = self.sweeper(ruleset, ())
        if self._check_is_due(ruleset, (), when):
            with self.named_failures(call):
                self._check(ruleset, (), call, target)
        return self.batched.recall((ruleset.key, ()), lambda: batched_sweeper(sweeper))

    def use(self, graph: Lowered, at: tuple[str, ...]) -> None:
        """Use a compiled graph for all calls and targets that it serves, in place of older graphs for these."""
        key = (graph.sweeper.rewritten.plan.ruleset.key, at)
        others = (g for g in self.compiled.get(key, ()) if not g.serves(graph.example, graph.target))
        self.compiled[key] = (graph, *others)[:_GRAPHS]

    def compiled_for(self, ruleset: RuleSet, at: tuple[str, ...], call: Call, target: Target) -> Lowered | None:
        """The compiled graph that serves this call and target; None without one."""
        graphs = self.compiled.get((ruleset.key, at), ())
        return next((graph for graph in graphs if graph.serves(call, target)), None)

    @contextlib.contextmanager
    def named_failures(self, call: Call) -> Iterator[None]:
        """Turn a failure inside the graph into an :class:`InputError` that names the node."""
        try:
            yield
        except RuntimeError as error:
            graph_module = self.captured.graph_module
            node = failing_node(graph_module, call.leaves)
            if node is None:
                raise
            inputs = ", ".join(f"'{n}' is {t.dtype} of shape {tuple(t.shape)}" for n, t in call.tensors.items())
            precisions = ", ".join(sorted({str(p.dtype) for p in graph_module.parameters()})) or "none"
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the model cannot run on these inputs: {reason}, at {locate(node)}.\nRemedy: {inputs}; its parameters "
                f"are {precisions}: give inputs of the precision, device and shape that the model accepts."
            ) from error
