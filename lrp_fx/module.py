"""The converted module: the methods for users."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from lrp_fx.capture import Call, Captured, ModelState, free_numbers, is_traced, opened
from lrp_fx.converted import RuleSource
from lrp_fx.encode import Encoded, Raw
from lrp_fx.errors import CaptureError
from lrp_fx.explain import Condition, Target
from lrp_fx.explain.answers import answers, answers_at
from lrp_fx.explain.conditions import places_of
from lrp_fx.explain.derivative import differentiable_once, has_derivative
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target import padding_masks, shown
from lrp_fx.explain.target_types import normal_targets, spoken
from lrp_fx.exporting import Exporting
from lrp_fx.lowering import generate
from lrp_fx.report import Report, make_report
from lrp_fx.results import Attribution, Attributions, Context, Generation, Later, Result, Tokens
from lrp_fx.results.weights_digest import model_fingerprint
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.verify.verify import Verification, verify


class ExplainableModule(Exporting):
    """A model whose backward is Layer-wise Relevance Propagation.

    Calls return the model's output, and plain autograd through them yields modified gradients: input times gradient is
    relevance. Parameters are shared with the model, which is not modified.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output; its gradient is that of the rules, which has no derivative itself.

        Raises:
            CaptureError: if it is traced (``torch.compile``, ``torch.export``) and has several captures.
            DerivativeError: in a backward pass that differentiates relevance, unless no rule changes the gradient.
        """
        if is_traced():
            if len(self.captures) > 1:
                raise CaptureError(
                    f"there are {len(self.captures)} captures, and a tracer cannot choose among them.\nRemedy: trace "
                    "the graph_module of a conversion with a single capture."
                )
            return self.graph_module(*args, **kwargs)
        args, kwargs = opened((args, kwargs))
        specialization, call = self.specialization(args, kwargs)
        if call.free is not None:
            args, kwargs = free_numbers((args, kwargs), call.free)
        graph_module = specialization.under(self.ruleset).graph_module
        if not has_derivative(self.ruleset):
            args, kwargs = differentiable_once((args, kwargs))
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
        keep_inputs: bool = True,
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
        keep_inputs: bool = True,
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
        keep_inputs: bool = True,
        **kwargs: Any,
    ) -> Attribution | Attributions:
        """Relevance of every input, and of the tensors inside the model named by ``at``, for one scalar per sample.

        Args:
            *args: the model's inputs. If the model was converted with its tokenizer, image processor, ..., also raw
                inputs: a text, a pair of texts (a tuple), a chat, an image, a sound, a list of them, a text and an
                image.
            target: None (each sample's largest logit, at the last non-padding position of a sequence of logits), a
                class or token id, one per sample, "contrast", "log_prob", "probability" or "logit" (of the largest), a
                :class:`lrp_fx.Contrast`, :class:`lrp_fx.LogProb`, :class:`lrp_fx.Probability` or :class:`lrp_fx.Logit`
                of a class and a position, a :class:`lrp_fx.Span` of a text's tokens, a tuple index into the output's
                non-batch dimensions, :class:`lrp_fx.Pixels` of a class where the output has many values per class (a
                class alone is refused there), or a callable from the output to (B,) scalars.
            at: names or globs: outputs of modules, ``"model.layers.*.mlp"``; their inputs, ``"*.down_proj@input"``;
                parts of attention, ``"...self_attn@mixed"`` (query, key, value, scores, weights, mixed; with a
                dimension for heads).
            condition: ``{"model.layers.3.mlp": neuron_ids}``: only relevance through these features of these tensors
                (CRP, arXiv:2206.03208); the features of parts of attention are heads. A tensor is an input of the model
                by that name.
            rules: another rule set than the one of the conversion.
            memory: "low" checkpoints the model's repeated blocks: a third more time, and a fraction of the memory.
            targets: several targets in place of one: :meth:`explain_targets`.
            check: "first" checks the first explanation of every capture and rule set with an accounting sweep
                (``lrp_fx.explain.check``): one more forward and backward pass, with all values in memory. "always"
                checks every explanation, False none; None for the option of ``convert``. Explanations with
                ``memory="low"`` and on the meta device are not checked; of several targets the first is; for a compiled
                graph, the eager graph is.
            keep_inputs: whether the result keeps the inputs. Ledger, sources, and the output of an explanation that ran
                the head at one position only, are computed from them on demand, and are not available without them. To
                have one of them without the inputs: read it, then ``result.without_inputs()``.
            **kwargs: the model's inputs; one that has the name of an argument above is given by position.

        Raises:
            InputError, TargetError, LatentError, NumericalError, UnknownOpError, CaptureError: see ``lrp_fx.errors``.
        """
        if memory not in ("normal", "low"):
            raise ValueError(f'memory={memory!r}: choose "normal" or "low"')
        if isinstance(condition, torch.Tensor):
            kwargs["condition"], condition = condition, None
        if targets is None:
            conditions = [{} if condition is None else condition]
            single = self._explain(args, kwargs, target, at, conditions, rules, memory == "low", check)[0]
            return single if keep_inputs else single.without_inputs()
        if target is not None or condition is not None or memory == "low":
            raise ValueError('targets= cannot be combined with target=, condition= or memory="low": give one target=')
        several = self.explain_targets(*args, targets=targets, at=at, rules=rules, check=check, **kwargs)
        return several if keep_inputs else several.without_inputs()

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
        """Relevance for many targets from one forward pass; the same as :meth:`explain` for each target.

        Args:
            *args: the model's inputs.
            targets: each as in :meth:`explain`. Classes, tuples (position, class), logits and contrasts have one
                batched backward pass, other targets one each.
            at: as in :meth:`explain`.
            rules: as in :meth:`explain`.
            chunk: number of backward sweeps in one batch; memory grows with it. None for the fastest.
            check: as in :meth:`explain`.
            **kwargs: the model's inputs.

        Raises:
            TargetError: for a target out of range, and for a target of one sample among targets of all samples.
        """
        args, kwargs, encoded = self.encoded(args, kwargs)
        specialization, call = self.specialization(args, kwargs)
        when = self.captures.options.when(check)
        result = specialization.explain_targets(self.rule_set(rules), places_of(at), call, targets, chunk, when)
        listed = normal_targets(targets)
        names = tuple(spoken(t) or "the model's answer" for t in listed)
        ruleset = self.rule_set(rules)
        accounts = functools.partial(specialization.account_of, ruleset, call, listed)
        context = self._context(result, encoded)
        notes = specialization.notes_on_gradient(self._stand_in, ruleset, call, args, kwargs, listed[0], when)
        context = replace(context, notes=(*context.notes, *notes))
        return replace(result, context=context, names=names, _accounts=accounts)

    def explain_generation(
        self,
        input_ids: torch.Tensor | Raw,
        *beside: Raw,
        max_new_tokens: int,
        target: Target = None,
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        chunk: int | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Generation:
        """Generate with the model's ``generate`` and cache, then attribute every new token to all tokens before it.

        One forward pass explains many tokens: the logits at a position depend on its prefix only.

        Args:
            input_ids: (B, S) prompt; as in :meth:`explain` also a text, a chat (with images in its messages), an image,
                a sound, or a list of them.
            *beside: further raw inputs (a text for an image).
            max_new_tokens: largest number of new tokens.
            target: target for every new token: None or "logit", "contrast", "log_prob", "probability", or a
                :class:`lrp_fx.Contrast` with a foil.
            at: as in :meth:`explain`; latents have a row for each new token and a position for each token.
            rules: as in :meth:`explain`.
            chunk: as in :meth:`explain_targets`.
            options: further arguments of ``generate`` (the default is no sampling).
            **kwargs: further inputs of the model (``attention_mask``, images).

        Raises:
            InputError: if the model has no ``generate``, or generates nothing.
            TargetError: for a target that names a class or a position.
        """
        explain = functools.partial(self.explain_targets, at=at, rules=rules, chunk=chunk)
        how = {"max_new_tokens": max_new_tokens, **(options or {})}

        def capture(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Captured, Call]:
            specialization, call = self.specialization(args, kwargs)
            return specialization.captured, call

        _, inputs, encoded = self.encoded((input_ids, *beside), kwargs, left=True)
        if encoded is None:
            inputs = {"input_ids": input_ids, **kwargs}
        else:  # generate makes the decoder's start itself
            inputs.pop("decoder_input_ids", None)
        generation = generate(self.model, explain, capture, inputs, how, target, latents=bool(places_of(at)))
        if encoded is None:
            return generation.with_context(self._context(generation, None))
        # the prompt's tokens end before the generated ones: the whole sequence is described instead
        prompt = encoded.tokens.get(generation.generated)
        encoded = replace(encoded, tokens={n: v for n, v in encoded.tokens.items() if n != generation.generated})
        context = self._context(generation, encoded)
        if prompt is not None and generation.generated == "input_ids":  # its special tokens include a chat's template
            whole = tuple(a.after(b) for a, b in zip(context.tokens["input_ids"], prompt, strict=True))
            context = replace(context, tokens={**context.tokens, "input_ids": whole})
        return generation.with_context(context)

    def _context(self, result: Result, encoded: Encoded | None, question: str = "") -> Context:
        """Context of a result: fingerprint of the model, target in words, tokens, notes, class names, ..."""
        fingerprint = functools.partial(model_fingerprint, self.model)
        if self.encoder is None:
            return replace(result.context, question=question, fingerprint=fingerprint)
        encoder = self.encoder
        texts = {} if encoded is None else encoded.tokens
        names = result.token_inputs
        tokens = {n: texts.get(n) or self.described(n, names, result.inputs) or result.tokens(n) for n in names}
        notes = result.context.notes if encoded is None else (*encoded.notes, *result.context.notes)
        context = replace(result.context, question=question, fingerprint=fingerprint)
        colours = {n: v for n, v in encoder.normalization(result.inputs).items() if n in result.relevance}
        rate = context.sampling_rate if encoder.sampling_rate is None else encoder.sampling_rate
        return replace(
            context, tokens=tokens, notes=notes, labels=encoder.labels, sampling_rate=rate, normalization=colours
        )

    def described(
        self, name: str, names: Sequence[str], inputs: Mapping[str, torch.Tensor]
    ) -> tuple[Tokens, ...] | None:
        """The tokens of an input of ids in a call without a text.

        Args:
            name: the input.
            names: all inputs of ids.
            inputs: the inputs of the call by name.

        Returns:
            Tokens of every sample; None where no tokenizer knows them.
        """
        ids, texts = inputs.get(name), None if self.encoder is None else self.encoder.texts
        if ids is None or texts is None or ids.dim() != 2 or name not in texts.of_vocabulary(names):
            return None
        masks = padding_masks(inputs)
        mask = next(
            (shown(m) for n, m in masks.items() if m.shape == ids.shape and ("decoder" in n) == ("decoder" in name)),
            None,
        )
        return texts.describe(ids, mask)

    def _answered(self, result: Attribution, target: Target, reading: Reading) -> tuple[str, ...] | None:
        """Names of the explained values; None where they would need another forward pass."""
        output = result._output
        if self.encoder is None:
            return None
        if isinstance(output, Later):
            named = None if output.logits is None else answers_at(target, output.logits, self.encoder.answer)
        else:
            named = answers(target, output, padding_masks(result.inputs), reading, self.encoder.answer)
        return named if named is not None and len(named) == len(result) else None

    def _explain(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Target,
        at: str | Iterable[str],
        conditions: Sequence[Condition],
        rules: RuleSource | None,
        low_memory: bool = False,
        check: str | bool | None = None,
    ) -> list[Attribution]:
        ruleset, places, when = self.rule_set(rules), places_of(at, *conditions), self.captures.options.when(check)
        args, kwargs, encoded = self.encoded(args, kwargs)
        specialization, call = self.specialization(args, kwargs)
        results = specialization.explain(ruleset, places, call, target, conditions, low_memory, when)
        if not results:
            return []
        named = self._answered(results[0], target, specialization.reading)
        notes = specialization.notes_on_gradient(self._stand_in, ruleset, call, args, kwargs, target, when)
        contexts = (self._context(one, encoded, spoken(target)) for one in results)
        return [
            one.with_context(replace(context, answers=named, notes=(*context.notes, *notes)))
            for one, context in zip(results, contexts, strict=True)
        ]

    def _stand_in(self) -> torch.nn.Module:
        """A copy of the model that shares memory with it, but not its modules and parameters."""
        return ModelState(self.model).stand_in().module

    def report(self, *args: Any, target: Target = None, **kwargs: Any) -> Report:
        """Role and rule of every node of the latest capture; with inputs, of the capture for them, with relevance.

        Args:
            *args: the model's inputs, as in :meth:`explain`, or none.
            target: as in :meth:`explain`.
            **kwargs: the model's inputs.
        """
        if not args and not kwargs:
            return make_report(self.current.captured, self.current.under(self.ruleset).plan)
        args, kwargs, _ = self.encoded(args, kwargs)
        specialization, call = self.specialization(args, kwargs)
        sweeper = specialization.sweeper(self.ruleset, ())
        with specialization.named_failures(call):
            relevance = sweeper.relevance_of_nodes(call, target)
        return make_report(sweeper.captured, sweeper.rewritten.plan, relevance)

    def verify(
        self,
        *args: Any,
        target: Target = None,
        rules: RuleSource | None = None,
        show: bool = False,
        **kwargs: Any,
    ) -> Verification:
        """Verify the conversion on these inputs (:func:`lrp_fx.verify.verify`); ``show`` prints the table.

        Checks: outputs, conservation at every node, the ledger, finiteness, the gradient rules against autograd, and
        the response to small changes of the inputs.
        """
        ruleset = self.rule_set(rules)
        args, kwargs, _ = self.encoded(args, kwargs)
        specialization, call = self.specialization(args, kwargs)
        sweeper, plain = (specialization.sweeper(r, ()) for r in (ruleset, RuleSet.load("gradient")))
        with specialization.named_failures(call):
            result = verify(self._stand_in(), sweeper, plain, call, args, kwargs, target)
        if show:
            result.print()
        return result
