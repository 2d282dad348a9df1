"""Typed errors. Each message names the place in the model and the remedy."""

from __future__ import annotations


class LrpError(Exception):
    """Base class of every error raised by lrp_fx."""


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def type_and_line(error: BaseException) -> str:
    """``"Type: first line of the message"``; the type alone if the message is empty."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


class CaptureError(LrpError):
    """The model could not be captured as a graph."""


class InputError(LrpError, ValueError):
    """The inputs cannot be explained (empty batch, NaN, no floating or token input, ...)."""


class UnsafeFileError(InputError):
    """A file refers to something that must not be loaded or run: code, a pickle, an operator with side effects."""


class LoweringError(LrpError):
    """A lowered graph disagrees with the model's own sweep, does not run, or cannot be saved, copied or pickled."""


class ContractError(LrpError):
    """The graph that a stage returned violates the contract of the next stage (``lrp_fx.contracts``)."""


class UnknownOpError(LrpError):
    """Relevance reaches an operator that the op table does not declare."""


class RuleSetError(LrpError, ValueError):
    """A rule set is malformed or names a role, rule or file that does not exist."""


class TargetError(LrpError, ValueError):
    """The target does not select one scalar per sample of an output that depends on the inputs."""


class LatentError(LrpError, KeyError):
    """A latent, node, neuron or axis that does not exist in the captured graph."""

    def __str__(self) -> str:
        return str(self.args[0])


class WeightError(LrpError, ValueError):
    """A checkpoint does not have the weights that a saved graph refers to."""


class NumericalError(LrpError, ArithmeticError):
    """A forward value or a relevance is NaN or infinite."""


class DerivativeError(LrpError, RuntimeError):
    """A derivative of relevance: rules hold slopes and statistics constant, so that it has none."""


class StaleResultError(LrpError, RuntimeError):
    """A part of a result is computed on demand, but the inputs or weights of its explanation were changed."""


class RecaptureWarning(UserWarning):
    """A model is captured again and again, because the model or its calls keep changing."""


class MissingExtraError(LrpError, ImportError):
    """An optional dependency is not installed."""
