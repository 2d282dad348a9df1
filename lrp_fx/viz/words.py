"""From the pieces of a tokenizer to the words of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word (or a special token) with the relevance of its pieces summed."""

    text: str
    relevance: float
    special: bool = False


def most_relevant(words: Sequence[Word]) -> list[Word]:
    """Words by magnitude of relevance, largest first; special tokens left out."""
    return sorted((w for w in words if not w.special), key=lambda w: -abs(w.relevance))


def join_pieces(
    text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None], relevance: Sequence[float]
) -> list[Word]:
    """Sum the relevance of the pieces of each word.

    A piece that begins with a space, or after one, begins a word too: some tokenizers number a whole sentence as one
    word.

    Args:
        text: the original text.
        offsets: (start, end) of every piece in it.
        words: number of the word that every piece belongs to, None for special tokens.
        relevance: one number per piece.
    """
    joined: list[Word] = []
    span: tuple[int, int] | None = None
    previous: int | None = None
    for (start, end), word, amount in zip(offsets, words, relevance, strict=True):
        if word is None:
            joined.append(Word("", float(amount), special=True))
        elif word == previous and span is not None and not text[span[1] : start + 1][:1].isspace():
            span = (span[0], max(span[1], end))
            joined[-1] = Word(text[slice(*span)].strip(), joined[-1].relevance + float(amount))
        else:
            span = (start, end)
            joined.append(Word(text[start:end].strip(), float(amount)))
        previous = word
    return joined
