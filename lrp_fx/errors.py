"""Typed errors. Each names where in the model it happened and what to do about it."""

from __future__ import annotations


class LrpError(Exception):
    """Base class of every error raised by lrp_fx."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def type_and_line(error: BaseException) -> str:
    """Type of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *said[:1]])


class CaptureError(LrpError):
    """The model could not be captured as a graph."""


class InputError(LrpError, ValueError):
    """The inputs cannot be explained (empty batch, NaN, no floating or token input, ...)."""


class UnsafeFileError(InputError):
    """A file names what reading it must not look up or run: code, a pickle, an operator with effects of its own."""


class LoweringError(LrpError):
    """A lowered graph does not explain as the model's own sweep does."""


class ContractError(LrpError):
    """A stage handed on a graph that is not as the next one expects it (``lrp_fx.contracts``)."""


class UnknownOpError(LrpError):
    """Relevance reaches an operator that the op table does not declare."""


class RuleSetError(LrpError, ValueError):
    """A rule set is malformed or names a role, rule or file that does not exist."""


class TargetError(LrpError, ValueError):
    """The target does not select one scalar per sample of an output that depends on the inputs."""


class LatentError(LrpError, KeyError):
    """The captured graph has nothing of a name: a module path given to ``at=`` or ``why``, a node."""

    def __str__(self) -> str:
        return str(self.args[0])


class WeightError(LrpError, ValueError):
    """A checkpoint does not have the weights that a saved graph refers to."""


class NumericalError(LrpError, ArithmeticError):
    """A forward value or a relevance is NaN or infinite."""


class RecaptureWarning(UserWarning):
    """A model was captured many times, because something about it or its calls keeps changing."""


class MissingExtraError(LrpError, ImportError):
    """An optional dependency is not installed."""
