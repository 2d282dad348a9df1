"""Context of a result besides its numbers: tokens, texts, names of classes and features, the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.results.notes import Note


@dataclass(frozen=True)
class Tokens:
    """One sequence of tokens; every field but ``text`` has an entry per position.

    Attributes:
        texts: text of each token.
        special: whether a token is a special token outside the text (start, separator, end).
        padding: whether a position is padding, which is not shown.
        offsets: (start, end) of each token in ``text``; None without a text.
        words: number of each token's word, None for special tokens; None if words were not counted.
        text: the whole text; for a pair both texts, the second on a new line.
    """

    texts: tuple[str, ...]
    special: tuple[bool, ...]
    padding: tuple[bool, ...]
    offsets: tuple[tuple[int, int], ...] | None = None
    words: tuple[int | None, ...] | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        columns = [self.special, self.padding, *(c for c in (self.offsets, self.words) if c is not None)]
        if any(len(column) != len(self.texts) for column in columns):
            raise InputError(f"{len(self.texts)} tokens, but their fields have {sorted(map(len, columns))} entries")

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, which: slice) -> Tokens:
        """The tokens of a slice."""
        offsets = None if self.offsets is None else self.offsets[which]
        words = None if self.words is None else self.words[which]
        return Tokens(self.texts[which], self.special[which], self.padding[which], offsets, words, self.text)

    def after(self, prompt: Tokens) -> Tokens:
        """The same sequence with the special tokens of ``prompt``, its beginning, marked as such."""
        return replace(self, special=(*prompt.special, *self.special[len(prompt) :]))

    @classmethod
    def plain(cls, texts: Sequence[str]) -> Tokens:
        """Tokens with texts alone: none special, none padding."""
        none = (False,) * len(texts)
        return cls(tuple(texts), none, none)


@dataclass(frozen=True)
class Normalization:
    """Normalization of an image's colours: ``value * std + mean`` is between 0 (black) and 1, per channel.

    Attributes:
        mean: the mean that was subtracted: one number per channel, or one for all.
        std: the divisor, alike.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def _unknown() -> str | None:
    return None


@dataclass(frozen=True)
class Context:
    """Context of the samples of a result.

    Attributes:
        tokens: name of an input of token ids -> the tokens of each sample.
        features: name of any other input -> names of the entries of its last dimension.
        labels: name of each class.
        answers: name of each sample's target ("positive").
        question: the target of the call, in words.
        sampling_rate: sampling rate of sound inputs in Hz.
        normalization: name of an image input -> normalization of its colours.
        notes: notes from before the model ran (a truncated text).
        fingerprint: computes a digest of the explained model (:mod:`lrp_fx.results.weights_digest`).
    """

    tokens: Mapping[str, tuple[Tokens, ...]] = field(default_factory=dict)
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None
    question: str = ""
    sampling_rate: float | None = None
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    fingerprint: Callable[[], str | None] = field(default=_unknown, repr=False, compare=False)

    def of(self, rows: Sequence[int]) -> Context:
        """The context of some samples."""
        tokens = {name: tuple(listed[i] for i in rows) for name, listed in self.tokens.items()}
        answers = None if self.answers is None else tuple(self.answers[i] for i in rows)
        return replace(self, tokens=tokens, answers=answers)

    def label(self, index: int) -> str:
        """The name of a class, or its number without one."""
        named = self.labels is not None and 0 <= index < len(self.labels)
        return self.labels[index] if named and self.labels is not None else f"class {index}"

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, with the computed digest in place of the function."""
        return vars(self) | {"fingerprint": ComputedDigest(self.fingerprint())}


@dataclass(frozen=True)
class ComputedDigest:
    """A digest that is already computed."""

    digest: str | None

    def __call__(self) -> str | None:
        """The digest."""
        return self.digest
