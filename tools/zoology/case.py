"""Cases of the zoo: models to check, each built in the process that checks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class NotBuildable(Exception):
    """A class without a tiny instance that can be built and run here; the message is the reason in the report."""


@dataclass(frozen=True)
class Built:
    """One tiny model with example inputs.

    Attributes:
        model: in evaluation mode, float32, randomly initialised from a fixed seed; its plain forward has been run.
        inputs: keyword arguments of its forward, batch of two where the model takes batches.
        args: positional arguments, for models that take none by keyword.
        target: output -> (B,) scalars to explain; None for the largest logit.
    """

    model: nn.Module
    inputs: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    target: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """One row of the report.

    Attributes:
        suite: "transformers", "timm", "torchvision" or "pypi".
        group: task or package ("causal-lm", "image-classification", "x-transformers").
        name: model type, with the class: "llama (LlamaForCausalLM)".
        build: makes the model; raises :class:`NotBuildable`, or any other exception, if that fails.
    """

    suite: str
    group: str
    name: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        """Unique name of the row."""
        return f"{self.suite}/{self.group}/{self.name}"
