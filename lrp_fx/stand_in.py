"""A module that stands for a model: parameters, state and attributes are the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class StandIn(nn.Module):
    """A module that works on a model without owning it.

    Moving it moves the model, all of it. Training mode is its own: the model's is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule
        self.train(getattr(model, "training", False))  # a frozen script has none

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._model[0]

    def __getattr__(self, name: str) -> Any:
        """What this module lacks is the model's: ``config``, ``device``, ``generate``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_model" not in self.__dict__:
                raise
            return getattr(self.model, name)

    def _apply(self, fn: Any, recurse: bool = True) -> StandIn:
        """``to``, ``half``, ``cuda`` and their like."""
        self.model._apply(fn, recurse)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters."""
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's buffers."""
        return self.model.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's state."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model's state."""
        return self.model.load_state_dict(*args, **kwargs)
