"""Rules for layers with weights, as runs of the layer on parts of its inputs and weights.

A layer z = sum_i x_i w_i + b is run several times, each time on a part of its input with a part of its weights. A
*share* of the relevance R of an output is divided by the sum of its runs and goes back through these runs to the
inputs. With x+ = max(x, 0), x- = min(x, 0), the same for weights and biases, and R_i the relevance of input i:

- ``gamma``: positive weights count more, R_i = x_i (w_i + gamma w_i+) / sum R (Montavon et al. 2019), for nonnegative
  inputs;
- ``generalised-gamma``: the same for inputs and outputs of any sign: contributions with the sign of the output count
  more (Andeol et al. 2021);
- ``alpha-beta``: R_i = (alpha (x_i w_i)+ / sum + - beta (x_i w_i)- / sum -) R, alpha - beta = 1 (Bach et al. 2015);
- ``z-plus``: alpha 1, beta 0 (Montavon et al. 2017);
- ``flat``: R evenly over the inputs of an output (Lapuschkin et al. 2019);
- ``w-square``: R_i = w_i^2 / sum w^2 R (Montavon et al. 2017);
- ``z-box``: R_i = (x_i w_i - l w_i+ - h w_i-) / sum R for inputs between l and h (Montavon et al. 2017).

In all of them epsilon stabilises the divisor, and a bias gets the share of its part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One run of the layer.

    Attributes:
        inputs: "all", "positive", "negative", "magnitude", "ones", "low" or "high".
        weights: "all", "positive", "negative", "favour-positive", "magnitude", "ones" or "square".
        bias: whether the bias takes part, with the same part as the weights.
        sign: 1, or -1 if the run is subtracted.
    """

    inputs: str
    weights: str
    bias: bool = True
    sign: int = 1


@dataclass(frozen=True)
class Share:
    """A share of the relevance, and the runs among which it is divided.

    Attributes:
        runs: the runs; their sum is the divisor.
        coefficient: factor of the relevance.
        sign: 1 or -1 for outputs of that sign only, 0 for all outputs.
    """

    runs: tuple[Run, ...]
    coefficient: float = 1.0
    sign: int = 0


def gamma(_: Parameters) -> tuple[Share, ...]:
    """Positive weights count more, for nonnegative inputs."""
    return (Share((Run("all", "favour-positive"),)),)


_EXCITING = (Run("positive", "positive"), Run("negative", "negative", bias=False))
_INHIBITING = (Run("positive", "negative"), Run("negative", "positive", bias=False))


def alpha_beta(p: Parameters) -> tuple[Share, ...]:
    """Positive and negative contributions separately."""
    shares = (Share(_EXCITING, p["alpha"]), Share(_INHIBITING, -p["beta"]))
    return tuple(share for share in shares if share.coefficient)


def z_plus(_: Parameters) -> tuple[Share, ...]:
    """Positive contributions alone."""
    return (Share(_EXCITING),)


def flat(_: Parameters) -> tuple[Share, ...]:
    """The same share for all inputs."""
    return (Share((Run("ones", "ones", bias=False),)),)


def w_square(_: Parameters) -> tuple[Share, ...]:
    """Squares of the weights."""
    return (Share((Run("ones", "square"),)),)


def z_box(_: Parameters) -> tuple[Share, ...]:
    """Contributions relative to the bounds of the inputs."""
    return (Share((Run("all", "all"), Run("low", "positive", sign=-1), Run("high", "negative", sign=-1))),)


def for_nonnegative(shares: tuple[Share, ...]) -> tuple[Share, ...]:
    """The same shares for an input without negative entries: its positive part is the input, its negative part is 0."""
    return tuple(
        replace(share, runs=tuple(_whole(run) for run in share.runs if run.inputs != "negative")) for share in shares
    )


def _whole(run: Run) -> Run:
    return replace(run, inputs="all") if run.inputs == "positive" else run
