"""The converted module: captures per call signature, plans per rule set, and the methods a user calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import fx

from lrp_fx.capture import TRACING, Call, Captured, ModelState, free_numbers, is_traced, opened, read_call
from lrp_fx.capture_cache import CaptureCache, Options
from lrp_fx.errors import CaptureError, NumericalError
from lrp_fx.explain import Attribution, Condition, Target
from lrp_fx.explain.conditions import places_of
from lrp_fx.explain.target import normal_targets
from lrp_fx.lowering import Attributions, Generation, Lowered, explain_targets, generate, lower
from lrp_fx.lowering.distributed.pipeline import Pipeline
from lrp_fx.operators.table import OpTable
from lrp_fx.report import Report, make_report
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.specialization import Specialization
from lrp_fx.stand_in import StandIn
from lrp_fx.verify.verify import Verification, verify

_NOTHING = "nothing is captured yet: give convert() example inputs, or call the module once"

RuleSource = RuleSet | str | Path | Mapping[str, Any]


class ExplainableModule(StandIn):
    """A model whose backward is Layer-wise Relevance Propagation.

    Calls return exactly what the model returns, and plain autograd through them yields modified gradients: input times
    gradient is relevance. Parameters are shared with the model, which is left as it was.
    """

    def __init__(self, model: torch.nn.Module, ruleset: RuleSet, ops: OpTable, options: Options) -> None:
        super().__init__(model)
        self.ruleset = ruleset
        self.captures = CaptureCache(model, ops, options)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph of the latest capture, with the model's own call signature.

        Raises:
            CaptureError: before the first capture.
        """
        return self.current.under(self.ruleset).graph_module

    @property
    def current(self) -> Specialization:
        """The latest capture and all that was made of it, for what looks inside (concepts, evaluation)."""
        latest = self.captures.latest
        if latest is None:
            raise CaptureError(_NOTHING)
        return latest

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output.

        Raises:
            CaptureError: where it is traced itself (``torch.compile``, ``torch.export``) and has several captures.
        """
        if is_traced():
            if len(self.captures) > 1:
                raise CaptureError(
                    f"{len(self.captures)} captures were made, and a tracer cannot choose among them.\nRemedy: trace "
                    "the graph_module of a conversion that was called one way only."
                )
            return self.graph_module(*args, **kwargs)
        args, kwargs = opened((args, kwargs))
        specialization, call = self.specialization(args, kwargs)
        if call.free is not None:
            args, kwargs = free_numbers((args, kwargs), call.free)
        graph_module = specialization.under(self.ruleset).graph_module
        with specialization.named_failures(call):
            return graph_module(*args, **kwargs)

    @overload
    def explain(
        self,
        *args: Any,
        target: Target = None,
        at: str | Iterable[str] = (),
        condition: Condition | None = None,
        rules: RuleSource | None = None,
        memory: str = "normal",
        targets: None = None,
        check: str | bool | None = None,
        **kwargs: Any,
    ) -> Attribution: ...

    @overload
    def explain(
        self,
        *args: Any,
        targets: Sequence[Target],
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        check: str | bool | None = None,
        **kwargs: Any,
    ) -> Attributions: ...

    def explain(
        self,
        *args: Any,
        target: Target = None,
        at: str | Iterable[str] = (),
        condition: Condition | None = None,
        rules: RuleSource | None = None,
        memory: str = "normal",
        targets: Sequence[Target] | None = None,
        check: str | bool | None = None,
        **kwargs: Any,
    ) -> Attribution | Attributions:
        """Relevance of every input, and of the tensors inside the model named by ``at``, for one scalar per sample.

        Args:
            *args: the model's inputs.
            target: None (each sample's largest logit, at the last non-padding position of a sequence of logits), a
                class or token id, one per sample, a :class:`lrp_fx.Contrast` of two classes, a tuple index into the
                output's non-batch dimensions, :class:`lrp_fx.Pixels` of a class where the output has many values per
                class (a class alone is refused there), or a callable from the output to (B,) scalars.
            at: names or globs: outputs of modules, ``"model.layers.*.mlp"``; what goes in, ``"*.down_proj@input"``;
                parts of attention, ``"...self_attn@mixed"`` (query, key, value, scores, weights, mixed; heads apart).
            condition: ``{"model.layers.3.mlp": neuron_ids}``: count only relevance that flows through these features of
                these tensors (CRP, arXiv:2206.03208); of parts of attention the features are heads.
            rules: another rule set than the one the model was converted with.
            memory: "low" runs the model's repeated blocks a second time on the way back instead of remembering what
                they computed: a third more time, and a fraction of the memory.
            targets: several targets in place of one: :meth:`explain_targets`.
            check: "first" holds the first explanation of every capture and rule set to an accounting sweep
                (``lrp_fx.explain.check``): a forward and a backward pass more, kept in full, and a look at every node.
                "always" does so every time, False never; None is what ``convert`` was told. Not with
                ``memory="low"`` nor on the meta device; a compiled graph is not compared, what it was made of is
                checked; of several targets the first is.
            **kwargs: the model's inputs.

        Raises:
            InputError, TargetError, LatentError, NumericalError, UnknownOpError, CaptureError: see ``lrp_fx.errors``.
        """
        if memory not in ("normal", "low"):
            raise ValueError(f'memory={memory!r}: choose "normal" or "low"')
        if targets is None:
            return self._explain(args, kwargs, target, at, [condition or {}], rules, memory == "low", check)[0]
        if target is not None or condition or memory == "low":
            raise ValueError("targets= goes with at= and rules=: give each target by itself with what else is asked")
        return self.explain_targets(*args, targets=targets, at=at, rules=rules, check=check, **kwargs)

    def explain_conditions(
        self,
        *args: Any,
        conditions: Sequence[Condition],
        target: Target = None,
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        **kwargs: Any,
    ) -> list[Attribution]:
        """One attribution per condition (see :meth:`explain`), all from one forward pass.

        Raises:
            LatentError: for a condition that does not fit its module's output; else as :meth:`explain`.
        """
        return self._explain(args, kwargs, target, at, conditions, rules)

    def explain_targets(
        self,
        *args: Any,
        targets: Sequence[Target],
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        chunk: int | None = None,
        check: str | bool | None = None,
        **kwargs: Any,
    ) -> Attributions:
        """Relevance for many targets from one forward pass; what :meth:`explain` says of each, one by one.

        Args:
            *args: the model's inputs.
            targets: each as in :meth:`explain`. Classes, tuples (position, class) and None go back all at once, others
                one after the other.
            at: as in :meth:`explain`.
            rules: as in :meth:`explain`.
            chunk: how many backward sweeps run at once: memory grows with it. None: what is fastest.
            check: as in :meth:`explain`.
            **kwargs: the model's inputs.

        Raises:
            TargetError: for a target out of range, or of a kind that has to be explained by itself.
        """
        ruleset = self._rules(rules)
        specialization, call = self.specialization(args, kwargs)
        places, targets = places_of(at), normal_targets(targets)
        sweeper = specialization.sweeper(ruleset, places)
        with specialization.named_failures(call):
            if specialization.due(ruleset, places, self.captures.options.when(check)):
                sweeper.check(call, targets[0])
                specialization.holds(ruleset, places)
            many = functools.partial(specialization.many_targets, ruleset, places, call)
            return explain_targets(sweeper, many, call, targets, chunk)

    def explain_generation(
        self,
        input_ids: torch.Tensor,
        *,
        max_new_tokens: int,
        rules: RuleSource | None = None,
        chunk: int | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Generation:
        """Generate with the model's own ``generate`` and cache, then attribute every new token to all tokens before it.

        One forward pass serves many of them: what a position says depends on its prefix only.

        Args:
            input_ids: (B, S) prompt.
            max_new_tokens: how many tokens at most.
            rules: as in :meth:`explain`.
            chunk: as in :meth:`explain_targets`.
            options: further arguments of ``generate`` (sampling is off unless they say otherwise).
            **kwargs: further inputs of the model (``attention_mask``, images).

        Raises:
            InputError: when the model has no ``generate``.
        """
        explain = functools.partial(self.explain_targets, rules=rules, chunk=chunk)
        how = {"max_new_tokens": max_new_tokens, **(options or {})}

        def capture(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Captured, Call]:
            specialization, call = self.specialization(args, kwargs)
            return specialization.captured, call

        return generate(self.model, explain, capture, {"input_ids": input_ids, **kwargs}, how)

    def _explain(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Target,
        at: str | Iterable[str],
        conditions: Sequence[Condition],
        rules: RuleSource | None,
        sparing: bool = False,
        check: str | bool | None = None,
    ) -> list[Attribution]:
        ruleset = self._rules(rules)
        specialization, call = self.specialization(args, kwargs)
        places = places_of(at, *conditions)
        fast = None if sparing or any(conditions) else specialization.faster(ruleset, places, call, target)
        tapped = specialization.sparing_sweeper if sparing else specialization.sweeper
        due = not sparing and specialization.due(ruleset, places, self.captures.options.when(check))
        with specialization.named_failures(call):
            if fast is not None:
                if due:
                    specialization.sweeper(ruleset, places).check(call, target)
                    specialization.holds(ruleset, places)
                with contextlib.suppress(NumericalError):  # the sweep below says where it begins
                    return [fast.explain_call(call, target) for _ in conditions]
            found = tapped(ruleset, places).explain_under(call, target, conditions, due)
        if due:
            specialization.holds(ruleset, places)
        return found

    def forget(self, rules: RuleSource) -> None:
        """Drop the graphs that were made for a rule set, where many are tried."""
        key = RuleSet.load(rules).key
        for specialization in self.captures:
            specialization.forget(key)

    def lower(
        self,
        *args: Any,
        target: Target = None,
        at: str | Iterable[str] = (),
        condition: Condition | None = None,
        rules: RuleSource | None = None,
        outputs: bool = False,
        dynamic: bool = True,
        **kwargs: Any,
    ) -> Lowered:
        """Forward, rule backward and choice of the target as ONE functional graph of plain tensor operators.

        Without example inputs, as the latest capture was called. Called like :meth:`explain`, it explains inputs of any
        size that the capture serves, with any target of the same form (a class, a tuple of indices, a
        :class:`lrp_fx.Contrast`, each sample's largest logit, or this callable).

        Args:
            *args: example inputs.
            target: its form is fixed, its value is an input of the graph.
            at: as in :meth:`explain`.
            condition: as in :meth:`explain`; a part of the graph.
            rules: another rule set than the one the model was converted with.
            outputs: also return the model's outputs; without them its head runs at the explained positions only.
            dynamic: leave sizes free; otherwise what depends on sizes alone (masks, rotary tables) is computed now.
            **kwargs: example inputs.

        Raises:
            InputError, TargetError, LatentError, UnknownOpError, CaptureError: see ``lrp_fx.errors``.
        """
        specialization, call = self._asked(args, kwargs)
        sweeper = specialization.sweeper(self._rules(rules), places_of(at, condition or {}))
        read = functools.partial(read_call, self.model, free=call.free)
        with TRACING:
            lowered = lower(sweeper, read, call, target, condition=condition, outputs=outputs, dynamic=dynamic)
        return replace(lowered, show=self.captures.show_one_sample) if dynamic else lowered

    def compile(  # type: ignore[override]
        self, *args: Any, mode: str | None = None, per_block: bool = False, **kwargs: Any
    ) -> Lowered:
        """:meth:`lower`, run by ``torch.compile`` (as one graph, at the first call); ``mode`` is that function's.

        From now on :meth:`explain` uses it for every call that it serves: the same form of target, rule set and ``at``.
        It takes the place of the graph that was compiled for such calls before.
        With ``per_block`` each kind of repeated block is compiled once: what it costs does not grow with depth.
        """
        graph = self.lower(*args, **kwargs).compile(mode, per_block=per_block)
        if not graph.condition:
            specialization = next(c for c in self.captures if c.captured is graph.sweeper.captured)
            specialization.use(graph, places_of(kwargs.get("at", ())))
        return graph

    def save(self, path: str | Path, *args: Any, weights: str = "inside", **kwargs: Any) -> None:
        """:meth:`lower`, saved for :func:`lrp_fx.load`; ``weights="reference"`` leaves out what the checkpoint has."""
        self.lower(*args, **kwargs).save(path, weights, self.model)

    def package(self, path: str | Path, *args: Any, **kwargs: Any) -> Path:
        """:meth:`lower`, compiled ahead of time (AOTInductor) to a package that runs from C++, or with torch alone."""
        return self.lower(*args, **kwargs).package(path)

    def to_onnx(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """:meth:`lower`, as an ONNX model (needs the extra "onnx")."""
        self.lower(*args, **kwargs).to_onnx(path)

    def pipeline(
        self,
        *args: Any,
        group: Any = None,
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        **kwargs: Any,
    ) -> Pipeline:
        """This process's stage of the model, to explain with the other processes of a ``torch.distributed`` group.

        Every process calls this alike, with example inputs or none, as :meth:`lower`; then ``explain`` of the result.
        """
        ruleset = self._rules(rules)
        specialization, call = self._asked(args, kwargs)
        sweeper = specialization.sweeper(ruleset, places_of(at))
        return Pipeline.build(sweeper, group, functools.partial(read_call, self.model, free=call.free))

    def report(self) -> Report:
        """What every node of the latest capture is, and which rule it got."""
        return make_report(self.current.captured, self.current.under(self.ruleset).plan)

    def verify(
        self,
        *args: Any,
        target: Target = None,
        rules: RuleSource | None = None,
        show: bool = False,
        **kwargs: Any,
    ) -> Verification:
        """Hold the conversion to the model on these inputs (:func:`lrp_fx.verify.verify`); ``show`` prints the table.

        Compared are outputs, conservation at every node, the ledger, finiteness, the gradient rules with autograd, and
        what happens when inputs move.
        """
        ruleset = self._rules(rules)
        specialization, call = self.specialization(args, kwargs)
        sweeper, plain = (specialization.sweeper(r, ()) for r in (ruleset, RuleSet.load("gradient")))
        with specialization.named_failures(call):
            result = verify(ModelState(self.model).stand_in().module, sweeper, plain, call, args, kwargs, target)
        if show:
            result.print()
        return result

    def _rules(self, rules: RuleSource | None) -> RuleSet:
        return self.ruleset if rules is None else RuleSet.load(rules)

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        return self.specialization(args, kwargs) if args or kwargs else (self.current, self.current.example)

    def specialization(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """The specialization that serves a call, captured now where there is none (``lrp_fx.capture_cache``)."""
        return self.captures.serving(args, kwargs)

    def extra_repr(self) -> str:
        """Rule set and number of captures."""
        return f"model={type(self.model).__name__}, rules={self.ruleset.name!r}, captures={len(self.captures)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in this process or another one, has the model and the rule set, and captures anew."""
        return type(self), (self.model, self.ruleset, self.captures.ops, self.captures.options)
