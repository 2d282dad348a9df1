"""What a result knows of its samples besides numbers: tokens, texts, names of classes and features, the model."""

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
        texts: what each token shows.
        special: whether a token is none of the text (start, separator, end).
        padding: whether a position is padding, and not shown.
        offsets: (start, end) of each token in ``text``; None where there is no text.
        words: number of the word that each token belongs to, None for special tokens; None where nobody counted them.
        text: the whole text; of a pair both, the second on a new line.
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
            raise InputError(f"{len(self.texts)} tokens, but {sorted(map(len, columns))} of what is said of each")

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, which: slice) -> Tokens:
        """Some of them."""
        offsets = None if self.offsets is None else self.offsets[which]
        words = None if self.words is None else self.words[which]
        return Tokens(self.texts[which], self.special[which], self.padding[which], offsets, words, self.text)

    def after(self, prompt: Tokens) -> Tokens:
        """The same sequence, told which tokens of the prompt that it begins with are none of the text."""
        return replace(self, special=(*prompt.special, *self.special[len(prompt) :]))

    @classmethod
    def plain(cls, texts: Sequence[str]) -> Tokens:
        """Tokens of which nothing is known but what they show."""
        none = (False,) * len(texts)
        return cls(tuple(texts), none, none)


@dataclass(frozen=True)
class Normalization:
    """What was done to the colours of an image: ``value * std + mean`` lies between 0, black, and 1, per channel.

    Attributes:
        mean: what was subtracted, a number for each channel or one for all.
        std: what was divided by.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def _unknown() -> str | None:
    return None


@dataclass(frozen=True)
class Context:
    """What is known of the samples of a result.

    Attributes:
        tokens: name of an input of token ids -> the tokens of every sample.
        features: name of another input -> names of the entries of its last dimension.
        labels: name of every class.
        answers: for every sample, the name of what is explained ("positive").
        question: the target as it was asked for, in words.
        sampling_rate: of inputs that are sound, in Hz.
        normalization: name of an input that is an image -> what was done to its colours.
        notes: what was seen before the model ran (a text that was cut off).
        fingerprint: computes a digest of the model that was explained (:mod:`lrp_fx.results.fingerprint`).
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
        """The name of a class, its number where it has none."""
        named = self.labels is not None and 0 <= index < len(self.labels)
        return self.labels[index] if named and self.labels is not None else f"class {index}"

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the digest, computed."""
        return vars(self) | {"fingerprint": Known(self.fingerprint())}


@dataclass(frozen=True)
class Known:
    """A digest that was computed before."""

    digest: str | None

    def __call__(self) -> str | None:
        """The digest."""
        return self.digest
