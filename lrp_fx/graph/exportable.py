"""Autograd functions as registered operators: ``torch.export`` records these as one node."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


def exportable(rule: type[Function], schema: str) -> Any:
    """Register an operator with the backward of ``rule``, an autograd function that returns its first argument.

    The operator returns a copy, as registered operators must not return views of their arguments.
    """
    name = schema.split("(")[0]
    op = torch.library.custom_op(
        f"lrp_fx::{name}", lambda value, *_: value.clone(), mutates_args=(), schema=schema.removeprefix(name)
    )
    op.register_fake(lambda value, *_: torch.empty_like(value))
    op.register_autograd(rule.backward, setup_context=rule.setup_context)
    return op
