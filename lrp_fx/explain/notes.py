"""Notes on weak maps: what about an explanation says that its picture should not be trusted as it is.

Sums are exact whatever a map looks like, so they cannot tell. These signs can: little of the explained value is with
the inputs, parts cancel, something other than the inputs took much of it. Each note says what to try in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    """What notes look at, summed over the batch.

    Attributes:
        relevance: input -> its relevance.
        target: the explained value.
        amounts: the ledger by category; None where it was not computed.
    """

    relevance: Mapping[str, Tensor]
    target: float
    amounts: Mapping[str, float] | None

    @property
    def inputs(self) -> float:
        """Relevance of all inputs."""
        return sum(float(r.double().sum()) for r in self.relevance.values())

    @property
    def magnitude(self) -> float:
        """Sum of its magnitudes."""
        return sum(float(r.double().abs().sum()) for r in self.relevance.values())

    def share(self, *categories: str) -> float:
        """What categories of the ledger took, as a share of the explained value; 0 where there is no ledger."""
        absorbed = sum(abs((self.amounts or {}).get(c, 0.0)) for c in categories)
        return absorbed / abs(self.target) if self.target else 0.0


def _little(signs: Signs) -> str | None:
    share = signs.inputs / signs.target if signs.target else 1.0
    if share >= SMALL:
        return None
    said = f"hold {share:.0%} of the explained value" if share >= 0 else "add up to the opposite sign of the value"
    return (
        f"the inputs {said}: biases, positions or softmax hold the rest (see .ledger). Try "
        'target=lrp_fx.Contrast(...), which takes out what all classes share, or rules="vit_gamma".'
    )


def _cancelling(signs: Signs) -> str | None:
    if signs.magnitude <= CANCELLING * abs(signs.target):
        return None
    times = f"{signs.magnitude / abs(signs.target):.0f} times" if signs.target else "far above"
    return (
        f"magnitudes of relevance add up to {times} the explained value: large parts cancel, and the picture shows the "
        'parts. Try rules="vit_gamma" or "epsilon_plus", or a target of larger value.'
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
        "xmodel.verify(...) whether the answer depends on it, and with report().why(...) where it is held constant."
    )


#: sign -> what it says of an explanation, None where it is not there
SIGNS: dict[str, Callable[[Signs], str | None]] = {
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
    signs = Signs(relevance, float(target.double().sum()), amounts)
    said = ((name, say(signs)) for name, say in SIGNS.items())
    return tuple(Note(name, text) for name, text in said if text is not None)
