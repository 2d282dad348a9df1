"""Ledgers and outputs that are computed on demand need the inputs and weights of the explanation, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from lrp_fx.errors import StaleResultError


def changes_of(tensors: Iterable[Tensor]) -> Callable[[str], None]:
    """Note tensors as they are now; the function that is returned raises an error once one was written in place.

    PyTorch counts writes, except those through ``.data`` and those into tensors of inference mode.
    """
    noted = [t for t in tensors if not t.is_inference()]
    versions = [t._version for t in noted]

    def check(what: str) -> None:
        """Raise an error that names the part of the result if a tensor was changed.

        Raises:
            StaleResultError: if one was.
        """
        if [t._version for t in noted] != versions:
            raise StaleResultError(
                f"the {what} of this explanation is computed on demand, and since the explanation its inputs or the "
                f"model's weights were changed in place. Read .{what} before the change, or explain again."
            )

    return check
