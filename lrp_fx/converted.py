"""A model with its rule set and its capture cache; lookup of the specialization for a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from lrp_fx.capture import Call
from lrp_fx.capture_cache import CaptureCache, Options
from lrp_fx.encode import Encoded, InputEncoder, encoded_call
from lrp_fx.errors import CaptureError
from lrp_fx.operators.table import OpTable
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.specialization import Specialization
from lrp_fx.stand_in import StandIn

RuleSource = RuleSet | str | Path | Mapping[str, Any]


class ConvertedModule(StandIn):
    """A model, the rule set it was converted with, and its captures.

    Attributes:
        ruleset: the default rule set of every call.
        encoder: encodes raw inputs (texts, images, sounds); None for a model converted without tokenizer and the like.
        captures: the capture cache (:mod:`lrp_fx.capture_cache`).
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
        """The most recently used specialization.

        Raises:
            CaptureError: before the first capture.
        """
        latest = self.captures.latest
        if latest is None:
            raise CaptureError("nothing is captured yet: give convert() example inputs, or call the module once")
        return latest

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph of the latest capture, with the model's call signature.

        Raises:
            CaptureError: before the first capture.
        """
        return self.current.under(self.ruleset).graph_module

    def specialization(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """The specialization that serves a call, captured on a cache miss, and the flat call."""
        return self.captures.serving(args, kwargs)

    def example(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """As :meth:`specialization`; without inputs, the latest specialization and its example inputs."""
        return self.specialization(args, kwargs) if args or kwargs else (self.current, self.current.example)

    def encoded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], left: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any], Encoded | None]:
        """Encode a call whose first arguments are raw (texts, images, sounds, lists of them); others are unchanged.

        The tensors get the device of the model's parameters; floating ones get their precision, too.

        Raises:
            InputError: for a raw input that the model was converted without an encoder for, and for two of one kind.
        """
        return encoded_call(self.encoder, self._floating, args, kwargs, left)

    def _floating(self) -> torch.Tensor:
        """A tensor with device and precision of the model's parameters."""
        floating = (p for p in self.model.parameters() if p.is_floating_point())
        like = next(floating, torch.empty(0))
        return torch.empty(0, dtype=like.dtype) if like.is_meta else like  # (offloaded weights)

    def rule_set(self, rules: RuleSource | None) -> RuleSet:
        """The rule set of a call; None for the one of the conversion."""
        return self.ruleset if rules is None else RuleSet.load(rules)

    def forget(self, rules: RuleSource) -> None:
        """Drop the graphs of a rule set, to save memory when many rule sets are tried."""
        key = RuleSet.load(rules).key
        for specialization in self.captures:
            specialization.forget(key)

    def extra_repr(self) -> str:
        """Rule set and number of captures."""
        return f"model={type(self.model).__name__}, rules={self.ruleset.name!r}, captures={len(self.captures)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or an unpickled one, has the model and the rule set, and an empty capture cache."""
        return type(self), (self.model, self.ruleset, self.captures.ops, self.captures.options, self.encoder)
