"""A module that stands in for a model: parameters, state and attributes are the model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class StandIn(nn.Module):
    """A module that refers to a model without being its parent.

    ``to`` and the like move the model. It has a training mode of its own and never changes the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule
        self.train(getattr(model, "training", False))  # a frozen TorchScript module has no such attribute

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._model[0]

    def __getattr__(self, name: str) -> Any:
        """Look up missing attributes in the model: ``config``, ``device``, ``generate``."""
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
