"""The result of a pipeline, and a call of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lrp_fx.encode import Encoded
from lrp_fx.errors import InputError
from lrp_fx.module import ExplainableModule
from lrp_fx.pairs import PairAttribution
from lrp_fx.results import Attribution, Attributions, Generation


@dataclass(frozen=True)
class Explained:
    """An answer with its attribution.

    Attributes:
        answer: the answer of transformers' pipeline; for tasks that it does not have, see docs/pipelines.md.
        attribution: an :class:`lrp_fx.Attribution` for one answer, :class:`lrp_fx.Attributions` for several, a
            :class:`lrp_fx.Generation` for a generated text, a :class:`lrp_fx.PairAttribution` for a similarity; None
            for an empty answer.
    """

    answer: Any
    attribution: Attribution | Attributions | Generation | PairAttribution | None

    def __iter__(self) -> Iterator[Any]:
        """``answer, attribution = pipe("a text")``."""
        return iter((self.answer, self.attribution))


@dataclass(frozen=True)
class Request:
    """One call of a pipeline.

    Attributes:
        xmodel: the converted model.
        pipe: the pipeline of transformers; None for tasks that it does not have.
        raw: the input.
        options: options of this call.
        rules: the rule set of this call; None for the one of the conversion.
    """

    xmodel: ExplainableModule
    pipe: Any
    raw: Any
    options: Mapping[str, Any]
    rules: Any = None

    @cached_property
    def answer(self) -> Any:
        """The answer of the pipeline of transformers."""
        return self.pipe(self.raw, **self.options)

    def encoded(self, *args: Any) -> Encoded:
        """Raw inputs as model inputs.

        Raises:
            InputError: for other values.
        """
        encoded = self.xmodel.encoded(args, {})[2]
        if encoded is None:
            raise InputError(f"this is no text, image or sound: {args!r:.80}")
        return encoded

    def output(self, encoded: Encoded) -> Any:
        """The model's output for encoded inputs."""
        with torch.no_grad():
            return self.xmodel(**encoded.inputs)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            InputError: without one.
        """
        encoder = self.xmodel.encoder
        if encoder is None or encoder.texts is None:
            raise InputError("this task needs a tokenizer: lrp_fx.pipeline(task, model, tokenizer=...)")
        return encoder.texts.tokenizer

    def class_of(self, label: str) -> int:
        """The number of a class by its name.

        Raises:
            InputError: for an unknown name.
        """
        labels = self.xmodel.encoder.labels if self.xmodel.encoder is not None else None
        if labels is None or label not in labels:
            raise InputError(f"no class is called {label!r}: {', '.join(labels or ()) or 'the model names none'}")
        return labels.index(label)
