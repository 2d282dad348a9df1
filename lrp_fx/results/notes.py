"""Notes on weak maps: what about an explanation says that its picture should not be trusted as it is.

Sums are exact whatever a map looks like, so they cannot tell. These signs can: little of the explained value is with
the inputs, parts cancel, something other than the inputs took much of it. Each note says what to try in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 0.1  #: share of the explained value that inputs hold, below which they are said to hold little
CANCELLING = 30  #: times the explained value that magnitudes of relevance add up to
TAKEN = 0.05  #: share of the explained value that stabilisers and constants may take
MOST = 0.5  #: share of it that softmax may take


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes:
        name: which sign it is.
        text: what was seen, and what to try.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Signs:
    """What notes look at: sample by sample, but for the ledger, which is a sum over the batch.

    Attributes:
        relevance: input -> its relevance.
        target: (B,) the explained values.
        amounts: the ledger by category; None where it was not computed.
    """

    relevance: Mapping[str, Tensor]
    target: Tensor
    amounts: Mapping[str, float] | None

    @property
    def inputs(self) -> Tensor:
        """(B,) relevance of all inputs."""
        return self._summed(lambda r: r)

    @property
    def magnitude(self) -> Tensor:
        """(B,) sum of its magnitudes."""
        return self._summed(Tensor.abs)

    @property
    def little(self) -> Tensor:
        """(B,) bool: where inputs hold little of the explained value, or have the opposite sign."""
        return (self.inputs * self.target.sign() < SMALL * self.target.abs()) & (self.target != 0)

    @property
    def cancelling(self) -> Tensor:
        """(B,) bool: where magnitudes add up to much more than the explained value."""
        return self.magnitude > CANCELLING * self.target.abs()

    def share(self, *categories: str) -> float:
        """What categories of the ledger took, as a share of the explained value; 0 where there is no ledger."""
        absorbed = sum(abs((self.amounts or {}).get(c, 0.0)) for c in categories)
        target = abs(float(self.target.sum()))
        return absorbed / target if target else 0.0

    def count(self, samples: Tensor) -> str:
        """Of how many samples that is said, where it is not said of all."""
        total, several = len(samples), int(samples.sum())
        return "" if several == total else f" (in {several} of {total} samples)"

    def _summed(self, part: Callable[[Tensor], Tensor]) -> Tensor:
        samples = len(self.target)
        total = torch.zeros(samples, dtype=torch.float64, device=self.target.device)
        for relevance in self.relevance.values():
            amount = part(relevance.double()).to(total.device)
            shared = not amount.dim() or len(amount) != samples  # an input that all samples share
            total = total + (amount.sum() / samples if shared else amount.reshape(samples, -1).sum(1))
        return total


def _little(signs: Signs) -> str | None:
    few = signs.little & (signs.magnitude > 0)
    if not few.any():
        return None
    share = float((signs.inputs / signs.target)[few].median())
    said = f"hold {share:.0%} of the explained value" if share >= 0 else "add up to the opposite sign of the value"
    return (
        f"the inputs {said}{signs.count(few)}: biases, positions or softmax hold the rest (see .ledger). Try "
        'target=lrp_fx.Contrast(...), which takes out what all classes share, or rules="default", if others are in use.'
    )


def _nothing(signs: Signs) -> str | None:
    still = signs.magnitude == 0
    if not still.any():
        return None
    return (
        f"no input got any relevance{signs.count(still)}: the explained value does not move with them, as a "
        'probability of nearly 1 does not, or a rule stops it on the way. Try target="contrast", or rules="gradient", '
        "which shows what moves it."
    )


def _cancelling(signs: Signs) -> str | None:
    large = signs.cancelling
    if not large.any():
        return None
    ratio = float((signs.magnitude / signs.target.abs())[large].median())
    times = f"{ratio:.0f} times" if math.isfinite(ratio) else "far above"
    return (
        f"magnitudes of relevance add up to {times} the explained value{signs.count(large)}: large parts cancel, and "
        'the picture shows the parts. Try rules="default" or "epsilon_plus", or a target of larger value.'
    )


def _stabilised(signs: Signs) -> str | None:
    share = signs.share("stabiliser", "constant")
    if share <= TAKEN:
        return None
    return (
        f"stabilisers and constants took {share:.0%} of the explained value. Try a smaller epsilon in the rule set; "
        "print(ledger.by('module')) says where."
    )


def _softmax(signs: Signs) -> str | None:
    share = signs.share("softmax")
    if share <= MOST:
        return None
    return (
        f"softmax took {share:.0%} of the explained value, what its Taylor expansion leaves over. Try "
        'rules="cp_lrp", which holds attention weights constant.'
    )


def _unmoved(signs: Signs) -> str | None:
    zero = [name for name, r in signs.relevance.items() if r.is_floating_point() and not bool(r.any())]
    if not zero or len(zero) == len(signs.relevance):
        return None
    return (
        f"{', '.join(map(repr, zero))} got no relevance at all while other inputs did. If it should matter, look with "
        "xmodel.verify(...) whether the answer depends on it, and with report().why(...) where it is held constant; "
        'where the model itself detaches it, convert(..., detach="see-through") follows it.'
    )


#: sign -> what it says of an explanation, None where it is not there
SIGNS: dict[str, Callable[[Signs], str | None]] = {
    "nothing": _nothing,
    "small share": _little,
    "cancelling": _cancelling,
    "stabilised": _stabilised,
    "softmax": _softmax,
    "no relevance": _unmoved,
}


def find_notes(
    relevance: Mapping[str, Tensor], target: Tensor, amounts: Mapping[str, float] | None
) -> tuple[Note, ...]:
    """The notes on one explanation; empty for a good map, and where nothing has a value (the meta device)."""
    if target.is_meta:
        return ()
    signs = Signs(relevance, target.detach().double().reshape(-1), amounts)
    said = ((name, say(signs)) for name, say in SIGNS.items())
    return tuple(Note(name, text) for name, text in said if text is not None)
