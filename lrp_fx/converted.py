"""A model with its rule set and its captures: which specialization serves a call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call
from lrp_fx.capture_cache import CaptureCache, Options
from lrp_fx.encode import KINDS, Encoded, InputEncoder, kind_of
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
        encoder: what makes model inputs of raw ones; None where the model was converted without.
        captures: one specialization for each way the model is called (``lrp_fx.capture_cache``).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        ruleset: RuleSet,
        ops: OpTable,
        options: Options,
        encoder: InputEncoder | None = None,
    ) -> None:
        super().__init__(model)
        self.encoder = encoder
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
        """A call whose first arguments are raw (a text, an image, a sound, a list of them), as one of tensors.

        Other calls stay as they are. What is made lies where the model's parameters lie, in their precision.

        Raises:
            InputError: for a raw input where the model was converted without what encodes it, and for two of one kind.
        """
        kinds = list(itertools.takewhile(lambda kind: kind is not None, map(kind_of, args)))
        raw = {kind: value for kind, value in zip(kinds, args, strict=False) if kind is not None}
        if not raw:
            return args, kwargs, None
        missing = [k for k, v in raw.items() if self.encoder is None or not self.encoder.takes(v, k)]
        if self.encoder is None or missing:
            if any(isinstance(v, (torch.Tensor, np.ndarray)) for v in pytree.tree_leaves((args, kwargs))):
                return args, kwargs, None  # a constant of the call
            kind = missing[0]
            raise InputError(f"nothing encodes this {kind}: lrp_fx.convert(model, {KINDS[kind].tool}=...)")
        if len(raw) < len(kinds):
            raise InputError(f"{len(kinds)} raw inputs of the kinds {', '.join(raw)}: give several as a list")
        rate = None if self.encoder.facts.names("sampling_rate") else kwargs.pop("sampling_rate", None)
        encoded = self.encoder.encode(raw, kwargs, left, rate)
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        placed = {n: _beside(v, like) if n not in kwargs else v for n, v in encoded.inputs.items()}
        return args[len(kinds) :], placed, encoded

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
        return type(self), (self.model, self.ruleset, self.captures.ops, self.captures.options, self.encoder)


def _beside(value: Any, parameter: Tensor) -> Any:
    """A tensor where a parameter is, in its precision where it is floating."""
    if not isinstance(value, Tensor):
        return value
    return value.to(parameter) if value.is_floating_point() else value.to(parameter.device)
