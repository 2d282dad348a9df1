"""Facts about a model for the encoding of its inputs: its signature and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrp_fx.capture.conventions import is_encoder_decoder

ENDLESS = 10**6  #: limits of this length or more mean "no limit"


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model.

    Attributes:
        labels: names of the classes, if there are any.
        accepted: names of its inputs; None if it takes any name.
        first: name of its first input.
        limit: number of positions; None if unknown.
        start: start token of its decoder; None without a decoder.
    """

    labels: tuple[str, ...] | None = None
    accepted: tuple[str, ...] | None = None
    first: str = "input_ids"
    limit: int | None = None
    start: int | None = None

    @classmethod
    def of(cls, model: nn.Module, labels: Sequence[str] | Mapping[int, str] | None = None) -> ModelFacts:
        """Facts from a model's signature and configuration.

        Args:
            model: the model; its ``config``, if it has one, gives names of classes, the limit and the start token.
            labels: names of the classes; None for those of the configuration.
        """
        config = getattr(model, "config", None)
        named = getattr(config, "id2label", None) if labels is None else labels
        if isinstance(named, Mapping):
            named = [named[i] for i in sorted(named)]
        parameters = inspect.signature(model.forward).parameters.values()
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        limit = getattr(config, "max_position_embeddings", None)
        return cls(
            tuple(map(str, named)) if named else None,
            None if open_ended else tuple(p.name for p in parameters),
            next((p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)), "input_ids"),
            limit if isinstance(limit, int) and 0 < limit < ENDLESS else None,
            _start(model, config) if is_encoder_decoder(model) else None,
        )

    def names(self, name: str) -> bool:
        """Whether the model's signature has an input of this name."""
        return self.accepted is not None and name in self.accepted

    def takes(self, name: str) -> bool:
        """Whether the model takes an input of this name."""
        return self.accepted is None or name in self.accepted


def _start(model: nn.Module, config: Any) -> int:
    settings = (getattr(model, "generation_config", None), config)
    starts = (getattr(s, "decoder_start_token_id", None) for s in settings)
    return next((s for s in starts if s is not None), 0)
