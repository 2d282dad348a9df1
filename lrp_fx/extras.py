"""Optional packages, imported at their first use."""

from __future__ import annotations

import importlib

from lrp_fx.errors import MissingExtraError


def require(module: str, extra: str) -> object:
    """Import an optional package.

    Raises:
        MissingExtraError: if it is not installed; the message names the pip extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"'{module}' is needed here: pip install 'lrp_fx[{extra}]'") from error
