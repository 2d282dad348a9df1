"""Ends an export of a more general example as soon as the model takes a way that is not for the call at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree as pytree

Sizes = Mapping[tuple[str, int], int]  #: (input, axis) -> size


class OtherWay(BaseException):
    """A guard of the export does not hold for the call at hand; no model takes this for an error of its own."""


@contextmanager
def stopping(sizes: Sizes, is_layout: Callable[[SLoc], bool]) -> Iterator[None]:
    """Within: an export raises :class:`OtherWay` at the next module call after a guard that other sizes break.

    Args:
        sizes: those of the call at hand.
        is_layout: whether a guard is an operator's own, which the model does not ask.
    """
    looked_at, broken = 0, False

    def enter(module: torch.nn.Module, args: Any) -> None:
        nonlocal looked_at, broken
        environment = next((t.fake_mode.shape_env for t in pytree.tree_leaves(args) if isinstance(t, FakeTensor)), None)
        if environment is None or len(environment.guards) <= looked_at:
            return
        values = {symbol: sympy.Integer(sizes[at]) for symbol, at in places_of(environment) if at in sizes}
        for guard in environment.guards[looked_at:]:
            if guard.expr.xreplace(values) == sympy.false and not is_layout(guard.sloc):
                broken = True
                raise OtherWay
        looked_at = len(environment.guards)

    hook = register_module_forward_pre_hook(enter)
    try:
        yield
    finally:
        hook.remove()
    if broken:  # something in between caught it
        raise OtherWay


def places_of(environment: Any) -> list[tuple[Any, tuple[str, int]]]:
    """Symbols of a shape environment, each with an input and the axis whose size it is."""
    places = []
    for symbol, sources in environment.var_to_sources.items():
        for source in sources:
            name = source.name if isinstance(source.name, str) else source.name()
            if match := re.fullmatch(r"L\['(\w+)'\](.*)\.size\(\)\[(\d+)\]", name):
                places.append((symbol, (match[1] + match[2], int(match[3]))))
    return places
