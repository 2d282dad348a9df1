"""What a model says of its inputs and of its answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrp_fx.capture.conventions import is_encoder_decoder

ENDLESS = 10**6  #: lengths from here on say that nobody knows a limit


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model.

    Attributes:
        labels: names of the classes, where there are some.
        accepted: names of inputs that the model takes; None for all.
        first: name of its first input.
        limit: most tokens that it has positions for; None where nobody says.
        start: the token with which its decoder begins; None where it has none.
    """

    labels: tuple[str, ...] | None = None
    accepted: tuple[str, ...] | None = None
    first: str = "input_ids"
    limit: int | None = None
    start: int | None = None

    @classmethod
    def of(cls, model: nn.Module, labels: Sequence[str] | Mapping[int, str] | None = None) -> ModelFacts:
        """What a model's signature and its configuration say.

        Args:
            model: its ``config``, where it has one, says names of classes, the limit and the start token.
            labels: names of the classes; what the configuration says where None.
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
        """Whether the model's signature names an input."""
        return self.accepted is not None and name in self.accepted

    def takes(self, name: str) -> bool:
        """Whether the model takes an input of this name."""
        return self.accepted is None or name in self.accepted


def _start(model: nn.Module, config: Any) -> int:
    settings = (getattr(model, "generation_config", None), config)
    starts = (getattr(s, "decoder_start_token_id", None) for s in settings)
    return next((s for s in starts if s is not None), 0)
