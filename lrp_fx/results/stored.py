"""Results in files: kinds by name, with one way to write and to read all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.results import document, storage


class Stored:
    """A result that can be saved.

    Each kind has a name (``KIND``), and is converted to a document (``_document``) and back (``_read``).
    """

    #: name of this kind of result in files
    KIND: ClassVar[str]
    #: kinds of results by name
    KINDS: ClassVar[dict[str, type[Stored]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "KIND" in vars(cls):
            Stored.KINDS[cls.KIND] = cls

    def save(self, path: str | Path, *, inputs: bool = True) -> Path:
        """Write the result to a file for :func:`lrp_fx.load_result` of this and every later version.

        The file also has tokens, names of classes, the rule set, versions, the ledger and a digest of the model. It has
        no code, no pickles, and no lazily computed parts (:attr:`sources`).

        Args:
            path: ``*.safetensors``, or ``*.json.gz``, which any language reads.
            inputs: whether to save the inputs.

        Raises:
            InputError: for another suffix.
            MissingExtraError: for ``*.safetensors`` without the package.
            OSError: where the file cannot be written; an older file stays.
        """
        return storage.write(self._document(inputs), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of :meth:`save`.

        Raises:
            InputError: for a file that is missing, damaged, of a later schema, or of another kind of result.
            MissingExtraError: for ``*.safetensors`` without the package.
        """
        stored = storage.read(path)
        try:
            about = document.check_head(stored.about)
            kind = Stored.KINDS[document.text(about, "kind")]
            result = kind._read(about, stored.tensors)
            result._check()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as reason:
            raise storage.refused(path, reason) from reason
        if not isinstance(result, cls):
            raise InputError(f"{str(path)!r} holds a result of the kind {result.KIND}, not {cls.__name__}")
        return result

    def _document(self, inputs: bool) -> document.Document:
        """The result as plain data."""
        raise NotImplementedError

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The result of a document."""
        raise NotImplementedError

    def _check(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: if they do not.
        """
