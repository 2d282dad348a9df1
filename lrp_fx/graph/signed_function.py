"""Autograd functions whose signature is computed once.

``torch.autograd.Function.apply`` inspects the signature of ``forward`` at every call, which takes longer than most of
the operators that rules are made of.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.autograd import Function


class SignedFunction(Function):
    """An autograd function; subclasses define ``forward``, ``setup_context`` and ``backward``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward: Any = cls.forward
        forward.__signature__ = inspect.signature(forward)
