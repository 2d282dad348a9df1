"""A model with its rule set and its captures: which specialization serves a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call
from lrp_fx.capture_cache import CaptureCache, Options
from lrp_fx.encode import Encoded, TextEncoder, are_texts
from lrp_fx.errors import CaptureError, InputError
from lrp_fx.operators.table import OpTable
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.specialization import Specialization
from lrp_fx.stand_in import StandIn

RuleSource = RuleSet | str | Path | Mapping[str, Any]


class ConvertedModule(StandIn):
    """A model, the rule set it was converted with, and its captures.

    Attributes:
        ruleset: the rule set of every call that names no other.
        captures: one specialization for each way the model is called (``lrp_fx.capture_cache``).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        ruleset: RuleSet,
        ops: OpTable,
        options: Options,
        encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__(model)
        self._encoder = encoder
        self.ruleset = ruleset
        self.captures = CaptureCache(model, ops, options)

    @property
    def current(self) -> Specialization:
        """The latest capture and all that was made of it, for what looks inside (concepts, evaluation).

        Raises:
            CaptureError: before the first capture.
        """
        latest = self.captures.latest
        if latest is None:
            raise CaptureError("nothing is captured yet: give convert() example inputs, or call the module once")
        return latest

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph of the latest capture, with the model's own call signature.

        Raises:
            CaptureError: before the first capture.
        """
        return self.current.under(self.ruleset).graph_module

    def specialization(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """The specialization that serves a call, captured now where there is none, and the call, flat."""
        return self.captures.serving(args, kwargs)

    def example(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """As :meth:`specialization`; without inputs, the latest capture with the call it was captured with."""
        return self.specialization(args, kwargs) if args or kwargs else (self.current, self.current.example)

    def encoded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], left: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any], Encoded | None]:
        """A call whose first argument is a text (a pair, a list of them), as one of tensors; other calls as they are.

        Raises:
            InputError: for a text where the model was converted without a tokenizer.
        """
        if not args or not are_texts(args[0]):
            return args, kwargs, None
        if self._encoder is None or self._encoder.tokenizer is None:
            if any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves((args, kwargs))):
                return args, kwargs, None  # a constant of the call
            raise InputError("a text needs a tokenizer: lrp_fx.convert(model, tokenizer=...)")
        encoded = self._encoder.encode(args[0], kwargs, left)
        return args[1:], encoded.inputs, encoded

    def rule_set(self, rules: RuleSource | None) -> RuleSet:
        """The rule set that a call names, or the one of the conversion."""
        return self.ruleset if rules is None else RuleSet.load(rules)

    def forget(self, rules: RuleSource) -> None:
        """Drop the graphs that were made for a rule set, where many are tried."""
        key = RuleSet.load(rules).key
        for specialization in self.captures:
            specialization.forget(key)

    def extra_repr(self) -> str:
        """Rule set and number of captures."""
        return f"model={type(self.model).__name__}, rules={self.ruleset.name!r}, captures={len(self.captures)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in this process or another one, has the model and the rule set, and captures anew."""
        return type(self), (self.model, self.ruleset, self.captures.ops, self.captures.options, self._encoder)
