"""Rules for layers with weights, as data: which parts of the input meet which parts of the weights, and who shares.

A layer z = sum_i x_i w_i + b is run several times, on a part of its input with a part of its weights each. A *share* of
the relevance R of an output is divided by the sum of the runs that belong to it and handed to their inputs. With
x+ = max(x, 0), x- = min(x, 0), the same for weights and biases, and R_i the relevance of input i:

- ``gamma``: w meets its positive part again, R_i = x_i (w_i + gamma w_i+) / sum R (Montavon et al. 2019), for inputs
  that are not negative;
- ``generalised-gamma``: the same for inputs and outputs of any sign: contributions of the output's own sign are
  favoured (Andeol et al. 2021);
- ``alpha-beta``: R_i = (alpha (x_i w_i)+ / sum + - beta (x_i w_i)- / sum -) R, alpha - beta = 1 (Bach et al. 2015);
- ``z-plus``: alpha 1, beta 0 (Montavon et al. 2017);
- ``flat``: R evenly over the inputs an output sees (Lapuschkin et al. 2019);
- ``w-square``: R_i = w_i^2 / sum w^2 R (Montavon et al. 2017);
- ``z-box``: R_i = (x_i w_i - l w_i+ - h w_i-) / sum R for inputs between l and h (Montavon et al. 2017).

As in every rule here, epsilon stabilises the divisor; a bias takes the share of its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One run of the layer.

    Attributes:
        inputs: "all", "positive", "negative", "ones", "low" or "high".
        weights: "all", "positive", "negative", "favour-positive", "favour-negative", "ones" or "square".
        bias: whether the bias takes part (the same part of it as of the weights).
        sign: 1, or -1 where the run is subtracted.
    """

    inputs: str
    weights: str
    bias: bool = True
    sign: int = 1


@dataclass(frozen=True)
class Share:
    """A part of the relevance and the runs that divide it.

    Attributes:
        runs: whose sum is the divisor.
        coefficient: what the relevance is multiplied by.
        sign: 1 or -1 where only outputs of that sign take part, 0 for all.
    """

    runs: tuple[Run, ...]
    coefficient: float = 1.0
    sign: int = 0


@dataclass(frozen=True)
class PartRule:
    """A rule: its shares as a function of its parameters, and the parameters with their defaults."""

    shares: Callable[[Parameters], tuple[Share, ...]]
    defaults: Parameters


def _generalised_gamma(_: Parameters) -> tuple[Share, ...]:
    more, less = "favour-positive", "favour-negative"
    return (
        Share((Run("positive", more), Run("negative", less, bias=False)), sign=1),
        Share((Run("positive", less), Run("negative", more, bias=False)), sign=-1),
    )


_EXCITING = (Run("positive", "positive"), Run("negative", "negative", bias=False))
_INHIBITING = (Run("positive", "negative"), Run("negative", "positive", bias=False))


def _alpha_beta(p: Parameters) -> tuple[Share, ...]:
    shares = (Share(_EXCITING, p["alpha"]), Share(_INHIBITING, -p["beta"]))
    return tuple(share for share in shares if share.coefficient)


def _z_box(_: Parameters) -> tuple[Share, ...]:
    return (Share((Run("all", "all"), Run("low", "positive", sign=-1), Run("high", "negative", sign=-1))),)


_STABLE = {"epsilon": 1e-6}

PART_RULES: dict[str, PartRule] = {
    "gamma": PartRule(lambda _: (Share((Run("all", "favour-positive"),)),), {"gamma": 0.25, **_STABLE}),
    "generalised-gamma": PartRule(_generalised_gamma, {"gamma": 0.25, **_STABLE}),
    "alpha-beta": PartRule(_alpha_beta, {"alpha": 2.0, "beta": 1.0, **_STABLE}),
    "z-plus": PartRule(lambda _: (Share(_EXCITING),), _STABLE),
    "flat": PartRule(lambda _: (Share((Run("ones", "ones", bias=False),)),), _STABLE),
    "w-square": PartRule(lambda _: (Share((Run("ones", "square"),)),), _STABLE),
    "z-box": PartRule(_z_box, {"low": 0.0, "high": 1.0, **_STABLE}),
}


BLIND = frozenset({"flat", "w-square", "z-box"})  #: rules that give relevance to inputs that are 0


def parameters(rule: str, given: Parameters) -> dict[str, float]:
    """Given parameters over the defaults of a rule.

    Raises:
        ValueError: for a parameter that the rule does not have, or that is outside its range.
    """
    defaults = PART_RULES[rule].defaults
    if unknown := set(given) - set(defaults):
        raise ValueError(f"{rule} has the parameters {', '.join(defaults)}, not {', '.join(sorted(unknown))}")
    chosen = {**defaults, **given}
    negative = [k for k, v in chosen.items() if v < 0 and k not in ("low", "high")]
    if negative:
        raise ValueError(f"{rule}: {', '.join(negative)} must not be negative")
    if rule == "alpha-beta" and abs(chosen["alpha"] - chosen["beta"] - 1) > 1e-12:
        raise ValueError("alpha-beta conserves relevance only where alpha - beta = 1")
    if rule == "z-box" and not chosen["low"] <= 0 <= chosen["high"]:
        raise ValueError("z-box: low <= 0 <= high")
    return chosen
