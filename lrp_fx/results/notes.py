"""Notes on weak maps: signs that the picture of an explanation should not be trusted.

Sums are exact for every map and cannot tell. These signs can: the inputs have little of the explained value, large
parts cancel, or stabilisers absorb much of it. Each note names a remedy. What softmax and constants absorb is no sign:
where the inputs have the rest, maps are as good as others (docs/notes.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 0.1  #: a note appears if inputs have less than this share of the explained value
CANCELLING = 30  #: ... if magnitudes of relevance sum to more than this multiple of it
TAKEN = 0.05  #: ... if stabilisers absorb more than this share of it
ROUNDED = 0.05  #: ... if the ledger misses it by more than this share of the ledger's largest amounts


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes:
        name: name of the sign.
        text: the observation and a remedy.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Signs:
    """Data of the notes: per sample, except for the ledger, which is a sum over the batch.

    Attributes:
        relevance: input -> its relevance.
        target: (B,) explained values.
        amounts: the ledger by category; None if it was not computed.
        ruleset: name of the rule set; a note does not recommend it.
    """

    relevance: Mapping[str, Tensor]
    target: Tensor
    amounts: Mapping[str, float] | None
    ruleset: str = ""

    @property
    def inputs(self) -> Tensor:
        """(B,) sum of the relevance of all inputs."""
        return self._summed(lambda r: r)

    @property
    def magnitude(self) -> Tensor:
        """(B,) sum of the magnitudes of relevance."""
        return self._summed(Tensor.abs)

    @property
    def little(self) -> Tensor:
        """(B,) bool: whether inputs have little of the explained value, or the opposite sign."""
        return (self.inputs * self.target.sign() < SMALL * self.target.abs()) & (self.target != 0)

    @property
    def cancelling(self) -> Tensor:
        """(B,) bool: whether magnitudes sum to much more than the explained value."""
        return self.magnitude > CANCELLING * self.target.abs()

    def share(self, *categories: str) -> float:
        """Amounts of categories of the ledger, as a share of the explained value; 0 without a ledger."""
        absorbed = sum(abs((self.amounts or {}).get(c, 0.0)) for c in categories)
        target = abs(float(self.target.sum()))
        return absorbed / target if target else 0.0

    def largest(self, categories: Iterable[str]) -> str | None:
        """The category of the ledger with the largest amount; None without a ledger."""
        amounts = self.amounts or {}
        return max((c for c in categories if amounts.get(c)), key=lambda c: abs(amounts[c]), default=None)

    def other_rules(self, *names: str) -> str:
        """The rule sets among ``names`` that are not in use, as text: 'rules="default" or "epsilon_plus"'."""
        others = [f'"{name}"' for name in names if name != self.ruleset]
        return f"rules={' or '.join(others)}" if others else ""

    def count(self, samples: Tensor) -> str:
        """In how many samples the sign appears, in words; "" for all."""
        total, several = len(samples), int(samples.sum())
        return "" if several == total else f" (in {several} of {total} samples)"

    def _summed(self, part: Callable[[Tensor], Tensor]) -> Tensor:
        samples = len(self.target)
        total = torch.zeros(samples, dtype=torch.float64, device=self.target.device)
        for relevance in self.relevance.values():
            amount = part(relevance.double()).to(total.device)
            shared = not amount.dim() or len(amount) != samples  # one input for all samples
            total = total + (amount.sum() / samples if shared else amount.reshape(samples, -1).sum(1))
        return total


#: name of a sign that every sample has or has not -> (B,) bool
_IN_SAMPLES: dict[str, Callable[[Signs], Tensor]] = {
    "nothing": lambda signs: signs.magnitude == 0,
    "small share": lambda signs: signs.little & (signs.magnitude > 0),
    "cancelling": lambda signs: signs.cancelling,
}


def _little(signs: Signs) -> str | None:
    few = _IN_SAMPLES["small share"](signs)
    if not few.any():
        return None
    share = float((signs.inputs / signs.target)[few].median())
    amount = f"hold {share:.0%} of the explained value" if share >= 0 else "add up to the opposite sign of the value"
    category = signs.largest(HOLDERS)
    if category is None:
        return (
            f"the inputs {amount}{signs.count(few)}: biases, positions or softmax hold the rest (see .ledger). "
            f"{_contrast(signs)}"
        )
    name, remedy = HOLDERS[category]
    return f"the inputs {amount}{signs.count(few)}, {name} {signs.share(category):.0%} of it. {remedy(signs)}"


def _contrast(signs: Signs) -> str:
    rules = signs.other_rules("default")
    several = "if there are several classes: it removes the part common to all"
    return f"Try target=lrp_fx.Contrast(...) {several}{rules and '; or ' + rules}."


def _without_softmax(_: Signs) -> str:
    return 'Try rules="cp_lrp", which holds attention weights constant.'


#: category of the ledger that can hold most of a value -> its name in a note, and the remedy
HOLDERS: dict[str, tuple[str, Callable[[Signs], str]]] = {
    "bias": ("biases", _contrast),
    "constant": ("constants (numbers in the code, nonlinearities at 0)", _contrast),
    "source": ("positions and other parameters", _contrast),
    "softmax": ("softmax (the remainder of its expansion)", _without_softmax),
}


def _nothing(signs: Signs) -> str | None:
    still = _IN_SAMPLES["nothing"](signs)
    if not still.any():
        return None
    return (
        f"no input got any relevance{signs.count(still)}: the explained value does not change with them (such as a "
        'probability near 1), or a rule stops relevance. Try target="contrast", or rules="gradient" to see which '
        "inputs change it."
    )


def _cancelling(signs: Signs) -> str | None:
    large = _IN_SAMPLES["cancelling"](signs)
    if not large.any():
        return None
    ratio = float((signs.magnitude / signs.target.abs())[large].median())
    times = f"{ratio:.0f} times" if math.isfinite(ratio) else "far above"
    return (
        f"magnitudes of relevance add up to {times} the explained value{signs.count(large)}: large parts cancel, and "
        f"the picture shows the parts. Try {signs.other_rules('default', 'epsilon_plus')}, or a target of larger value."
    )


def _stabilised(signs: Signs) -> str | None:
    share = signs.share("stabiliser")
    if share <= TAKEN:
        return None
    return (
        f"stabilisers took {share:.0%} of the explained value. Try a smaller epsilon in the rule set; "
        "print(ledger.by('module')) says where."
    )


def _unbalanced(signs: Signs) -> str | None:
    if signs.amounts is None:
        return None
    total, target = sum(signs.amounts.values()), float(signs.target.sum())
    if abs(total - target) <= ROUNDED * max(abs(target), sum(map(abs, signs.amounts.values()))):
        return None
    return (
        f"the ledger adds up to {total:.3g} instead of {target:.3g}: the model computes with numbers that cancel and "
        "are too large for the precision (scores of -1e30 that are added up, say). Its other entries cannot be read. "
        "Try a mask behind such sums, or -inf."
    )


def _unmoved(signs: Signs) -> str | None:
    zero = [name for name, r in signs.relevance.items() if r.is_floating_point() and not bool(r.any())]
    if not zero or len(zero) == len(signs.relevance):
        return None
    return (
        f"{', '.join(map(repr, zero))} got no relevance at all while other inputs did. If it should matter, check with "
        "xmodel.verify(...) whether the answer depends on it, and with report().why(...) where it is held constant; "
        'if the model detaches it, convert(..., detach="see-through") follows it.'
    )


#: name of a sign -> its text for an explanation; None if the sign is absent
SIGNS: dict[str, Callable[[Signs], str | None]] = {
    "nothing": _nothing,
    "small share": _little,
    "cancelling": _cancelling,
    "stabilised": _stabilised,
    "unbalanced": _unbalanced,
    "no relevance": _unmoved,
}


def find_notes(
    relevance: Mapping[str, Tensor], target: Tensor, amounts: Mapping[str, float] | None, ruleset: str = ""
) -> tuple[Note, ...]:
    """The notes on one explanation; none for a good map, and none on the meta device."""
    if target.is_meta:
        return ()
    signs = Signs(relevance, target.detach().double().reshape(-1), amounts, ruleset)
    texts = ((name, describe(signs)) for name, describe in SIGNS.items())
    return tuple(Note(name, text) for name, text in texts if text is not None)


def names_by_sample(relevance: Mapping[str, Tensor], target: Tensor) -> list[list[str]]:
    """Names of the notes on each sample of a batch, as if it had been explained alone; ledgers are not considered.

    Args:
        relevance: input -> its relevance, a row for each sample.
        target: (B,) explained values.
    """
    signs = Signs(relevance, target.detach().double().reshape(-1), None)
    masks = {name: of_samples(signs) for name, of_samples in _IN_SAMPLES.items()}
    if len(relevance) > 1:
        zero = torch.stack([r.reshape(len(r), -1).abs().amax(1) == 0 for r in relevance.values()])
        masks["no relevance"] = zero.any(0) & ~zero.all(0)
    listed = {name: mask.tolist() for name, mask in masks.items()}
    return [[name for name, present in listed.items() if present[i]] for i in range(len(signs.target))]
