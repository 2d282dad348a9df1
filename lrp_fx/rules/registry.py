"""Custom rules by name (:func:`lrp_fx.register_rule`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Backward = Callable[..., Tensor]  #: (g, y, **parameters) -> g'


@dataclass(frozen=True)
class CustomRule:
    """A rule declared by :func:`lrp_fx.register_rule`.

    Attributes:
        base: the rule of the table that it extends.
        backward: changes the cotangent before ``base`` does.
    """

    base: str
    backward: Backward


REGISTERED: dict[str, CustomRule] = {}


def custom_backward(name: str) -> Backward:
    """The backward function of a registered rule."""
    return REGISTERED[name].backward
