"""Encoded raw inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lrp_fx.results import Note, Tokens


@dataclass(frozen=True)
class Encoded:
    """Raw inputs as model inputs.

    Attributes:
        inputs: tensors by name, a row for each sample.
        tokens: name of an input of token ids -> tokens of every sample.
        notes: notes on inputs that were cut off.
    """

    inputs: dict[str, Tensor]
    tokens: Mapping[str, tuple[Tokens, ...]] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
