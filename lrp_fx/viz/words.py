"""What text views show: words with their relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word, a token or the name of a feature with its relevance; special ones are none of the text."""

    text: str
    relevance: float
    special: bool = False


def most_relevant(words: Sequence[Word]) -> list[Word]:
    """Words by magnitude of relevance, largest first; special tokens left out."""
    return sorted((w for w in words if not w.special), key=lambda w: -abs(w.relevance))
