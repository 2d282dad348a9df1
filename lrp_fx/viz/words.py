"""Words with their relevance, as text views show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word, a token or the name of a feature with its relevance; ``special`` for tokens outside of the text."""

    text: str
    relevance: float
    special: bool = False


def visible(text: str) -> str:
    r"""A text as a name that can be seen: white space alone by its escapes (``\n``), spaces or nothing as a dot."""
    return text if text.strip() else text.strip(" ").encode("unicode_escape").decode() or "·"


def most_relevant(words: Sequence[Word]) -> list[Word]:
    """Words by magnitude of relevance, largest first, without special tokens."""
    return sorted((w for w in words if not w.special), key=lambda w: -abs(w.relevance))
