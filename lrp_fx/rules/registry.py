"""Rules of a user's own, by name (:func:`lrp_fx.register_rule`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Backward = Callable[..., Tensor]  #: (g, y, **parameters) -> g'


@dataclass(frozen=True)
class OwnRule:
    """A rule declared by :func:`lrp_fx.register_rule`.

    Attributes:
        base: the rule of the table that it extends.
        backward: what it makes of the cotangent first.
    """

    base: str
    backward: Backward


REGISTERED: dict[str, OwnRule] = {}


def own_backward(name: str) -> Backward:
    """The backward function of a registered rule."""
    return REGISTERED[name].backward
