"""Optional packages: imported where they are used, or an error that names the extra which brings them."""

from __future__ import annotations

import importlib

from lrp_fx.errors import MissingExtraError


def require(module: str, extra: str) -> object:
    """Import an optional dependency or raise :class:`MissingExtraError` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"'{module}' is needed here: pip install 'lrp_fx[{extra}]'") from error
