"""What runs of a model write into its attributes: every run of a capture starts from the same state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrp_fx.capture.conventions import attributes_restored, preserved
from lrp_fx.capture.model_state import ModelState


class RunEffects:
    """Notes what runs of a model write, and undoes it after each.

    Attributes:
        written: names of what was written (:meth:`lrp_fx.capture.model_state.ModelState.written`).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.written: frozenset[str] = frozenset()
        self._before = ModelState(model)

    @contextmanager
    def undone(self, fake: bool = False) -> Iterator[None]:
        """In this context the model may run once; ``fake``: on tensors without memory, so that parameters are safe."""
        with attributes_restored(self.model) if fake else preserved(self.model):
            try:
                yield
            finally:
                self.written |= self._before.written()
