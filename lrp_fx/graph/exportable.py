"""Autograd functions as registered operators, which ``torch.export`` keeps in a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


def exportable(rule: type[Function], schema: str) -> Any:
    """The exportable twin of a function that returns its first argument: an operator with the same backward.

    It copies, as operators return no views.
    """
    name = schema.split("(")[0]
    op = torch.library.custom_op(
        f"lrp_fx::{name}", lambda value, *_: value.clone(), mutates_args=(), schema=schema.removeprefix(name)
    )
    op.register_fake(lambda value, *_: torch.empty_like(value))
    op.register_autograd(rule.backward, setup_context=rule.setup_context)
    return op
