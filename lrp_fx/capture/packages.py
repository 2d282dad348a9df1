"""Installed packages: whose code a module is, and which version."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import sysconfig
import types
from pathlib import Path

_OURS = __name__.partition(".")[0]


@functools.cache
def version(package: str) -> str | None:
    """The version of an installed package; None if it says none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


@functools.cache
def is_installed(module: str) -> bool:
    """Whether a module belongs to an installed package, whose version stands for its code."""
    package = module.partition(".")[0]
    if package in sys.builtin_module_names or package in sys.stdlib_module_names:
        return package != "__main__"
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return any(Path(file).is_relative_to(f) for f in site_folders()) and version(package) is not None


@functools.cache
def site_folders() -> set[str]:
    """Folders of installed packages: those of this Python, and further ones on its path."""
    named = {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return named | {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}


def is_torch(module: str) -> bool:
    """Whether a module belongs to PyTorch or to Python's builtins."""
    return module.partition(".")[0] in ("torch", "builtins")


def is_local(function: types.FunctionType) -> bool:
    """Whether a function belongs to no installed package: to a notebook, a script or a folder of the user's."""
    module = function.__globals__.get("__name__", "")
    return not (is_torch(module) or module.partition(".")[0] == _OURS or is_installed(module))
